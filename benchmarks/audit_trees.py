"""Trees for the audit's benchmarks, written by code: pictures like photographs and drawings, many tiny files, the samples."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.timing import Unavailable

SIDES = (256, 384, 512, 640, 768, 1024)
BASES = (
    24  # noise fields that the photographs are cut and mixed from: fresh noise would take longer than reading
)


def pictures(root: Path, count: int) -> Path:
    """`count` JPEG and PNG files of 256 to 1024 pixels a side; every 20th is a shrunk copy, every 25th an exact one."""
    draw = np.random.default_rng(0)
    bases = [_photograph(draw) for _ in range(BASES)]
    last = root
    for number in range(count):
        folder = root / f"{number // 200:03}"
        folder.mkdir(parents=True, exist_ok=True)
        if number % 25 == 24:
            shutil.copyfile(last, folder / f"{number:05} copy{last.suffix}")
            continue
        if number % 20 == 19:
            with Image.open(last) as opened:
                shrunk = opened.convert("RGB").resize((opened.width * 3 // 4, opened.height * 3 // 4))
            shrunk.save(folder / f"{number:05}.jpg", quality=80)
            continue
        image = _mixed(draw, bases)
        last = folder / f"{number:05}.{'png' if number % 4 == 0 else 'jpg'}"
        image.save(last, compress_level=1, quality=88)
    return root


def _photograph(draw: np.random.Generator) -> Image.Image:
    """Noise with the spectrum of a photograph, 1400 pixels a side: its amplitude falls with the frequency."""
    side = 1400
    frequency = np.hypot(*np.meshgrid(np.fft.rfftfreq(side), np.fft.fftfreq(side))) + 1 / side
    channels = [
        np.fft.irfft2(np.fft.rfft2(draw.normal(size=(side, side))) / frequency, (side, side))
        for _ in range(2)
    ]
    common, own = (channel / channel.std() for channel in channels)
    rgb = np.stack([common, 0.9 * common + 0.3 * own, 0.8 * common - 0.4 * own], axis=-1)
    return Image.fromarray((128 + 50 * rgb).clip(0, 255).astype(np.uint8))


def _mixed(draw: np.random.Generator, bases: list[Image.Image]) -> Image.Image:
    """A cut of a photograph, half of them with shapes over it, some of them out of focus."""
    width, height = (int(side) for side in draw.choice(SIDES, 2))
    base = bases[int(draw.integers(len(bases)))]
    left, top = int(draw.integers(base.width - width)), int(draw.integers(base.height - height))
    image = base.crop((left, top, left + width, top + height))
    if draw.random() < 0.5:
        pen = ImageDraw.Draw(image)
        for _ in range(int(draw.integers(5, 30))):
            x, y, w, h = (int(v) for v in (*draw.integers(0, (width, height)), *draw.integers(10, 200, 2)))
            shape = pen.rectangle if draw.random() < 0.5 else pen.ellipse
            shape((x, y, x + w, y + h), fill=tuple(int(v) for v in draw.integers(0, 255, 3)))
    return image.filter(ImageFilter.GaussianBlur(4)) if draw.random() < 0.1 else image


def small_files(root: Path, count: int) -> Path:
    """`count` tiny files, a hundred in a folder, ten folders in one above: pictures, texts, zips, a few broken ones.

    Per ten: four PNG, three JPEG, two texts, one zip; every 500th is cut short, and every 97th is a copy.
    """
    draw = np.random.default_rng(1)
    last = root
    for number in range(count):
        folder = root / f"{number // 1000:03}" / f"{number // 100 % 10}"
        if number % 100 == 0:
            folder.mkdir(parents=True, exist_ok=True)
        kind = number % 10
        extension = "png" if kind < 4 else "jpg" if kind < 7 else "txt" if kind < 9 else "zip"
        path = folder / f"{number:06}.{extension}"
        if number % 97 == 96:
            path = path.with_suffix(last.suffix)
            shutil.copyfile(last, path)
        elif extension == "txt":
            path.write_text(f"file {number}\n" * (1 + number % 40))
        elif extension == "zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("a.txt", f"text {number}\n" * 20)
                archive.writestr("b/c.txt", str(number))
        else:
            coarse = draw.integers(0, 255, (6, 6, 3), np.uint8)
            side = int(draw.integers(32, 96))
            image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
            image.save(path, compress_level=1, quality=80)
            last = path
        if number % 500 == 0:
            path.write_bytes(path.read_bytes()[:-200])
    return root


def samples(root: Path) -> Path:
    """A copy of the sample tree, ANBAN_DATA/audit/messy, with its empty folders."""
    data = Path(os.environ.get("ANBAN_DATA", "")) / "audit"
    if not (data / "messy").is_dir():
        raise Unavailable("ANBAN_DATA/audit/messy is not there")
    shutil.copytree(data / "messy", root / "messy", copy_function=shutil.copyfile)
    for line in (data / "empty_folders.txt").read_text(encoding="utf-8").splitlines():
        (root / line).mkdir(parents=True, exist_ok=True)
    return root / "messy"


def state(root: Path) -> dict[str, tuple[int, int, str]]:
    """Path -> mode, time of change and SHA-256 (of a file) of everything in a tree, the root too."""
    found = {}
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else ""
        found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, content)
    return found
