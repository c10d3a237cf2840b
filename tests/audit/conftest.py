"""A small collection with one file of most kinds, made here."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from anban.audit.limits import read_limits
from anban.audit.picture import Picture, read_picture


def scene(seed: int, size: tuple[int, int] = (480, 420)) -> Image.Image:
    """A picture with sharp and soft parts: blocks of colour over a slow gradient, and some noise."""
    draw = np.random.default_rng(seed)
    width, height = size
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([80 + 90 * across, 90 + 80 * down, np.full_like(across, 120)], axis=-1)
    for _ in range(60):
        x, y = draw.integers(0, width - 20), draw.integers(0, height - 20)
        w, h = draw.integers(12, 110, 2)
        pixels[y : y + h, x : x + w] = draw.integers(0, 255, 3)
    pixels += draw.normal(0, 4, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture_of(image: Image.Image, form: str = "PNG", **options: Any) -> Picture:
    """The picture as the checks would see it in a file."""
    return read_picture(io.BytesIO(encoded(image, form, **options)), "picture", read_limits()["picture"])


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _collection(root: Path) -> Path:
    good, other = scene(1), scene(2)
    files = {
        "good/one.png": encoded(good),
        "good/other.jpg": encoded(other, "JPEG", quality=92),
        "good/海报.png": encoded(scene(3)),
        "copies/one copy.png": encoded(good),
        "copies/other small.jpg": encoded(other.resize((412, 388)), "JPEG", quality=70),
        "bad/soft.jpg": encoded(scene(4).filter(ImageFilter.GaussianBlur(5)), "JPEG", quality=95),
        "bad/small.png": encoded(scene(5, (200, 150))),
        "bad/cut.jpg": encoded(scene(6), "JPEG")[:9000],
        "bad/called.png": encoded(scene(7), "JPEG", quality=95),
        "foreign/notes.txt": "一些笔记".encode(),
        "foreign/page.jpg": b"%PDF-1.7\n1 0 obj\n",
        "foreign/empty.png": b"",
        "packed/pictures.zip": zipped({"a/one.png": encoded(good), "b.txt": b"text"}),
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "nothing" / "below").mkdir(parents=True)
    return root


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _collection(tmp_path_factory.mktemp("made") / "collection")


@pytest.fixture
def collection(_made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(_made, tmp_path / "collection"))


@pytest.fixture
def limits_file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "limits-of-mine.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write
