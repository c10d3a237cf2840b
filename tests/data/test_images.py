"""Reading pictures and label maps: what is read as it is, and what is refused with the file's name."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from anban.data.images import read_header, read_label, read_rgb
from anban.errors import InputError


def picture(seed: int = 0, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_lossless_pictures_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    Image.fromarray(picture()).save(path)
    np.testing.assert_array_equal(read_rgb(path), picture())
    assert read_header(path).size == (20, 24)


def test_tifffile_and_jpeg(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", picture(), photometric="rgb")
    np.testing.assert_array_equal(read_rgb(tmp_path / "x.tif"), picture())
    flat = np.full((16, 16, 3), 90, dtype=np.uint8)
    Image.fromarray(flat).save(tmp_path / "x.jpg", quality=95)
    assert np.abs(read_rgb(tmp_path / "x.jpg").astype(int) - 90).max() <= 1


def test_grey_picture_is_repeated(tmp_path: Path) -> None:
    Image.fromarray(picture()[..., 0]).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "x.png"), picture()[..., :1].repeat(3, axis=2))


def test_label_values_are_raw(tmp_path: Path) -> None:
    values = np.array([[0, 1], [254, 255]], dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_label(tmp_path / "grey.png"), values)
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_label(tmp_path / "bit.png"), [[0, 1]])


def palette_label(path: Path, colours: list[int]) -> np.ndarray:
    values = np.array([[0, 1, 1], [0, 0, 1]], dtype=np.uint8)
    image = Image.new("P", (3, 2))
    image.putdata(values.ravel().tolist())
    image.putpalette(colours)
    image.save(path)
    return values


@pytest.mark.parametrize("colours", [[0, 0, 0, 255, 255, 255], [0, 0, 0, 128, 0, 0]])
def test_palette_label_is_read_by_index(tmp_path: Path, colours: list[int]) -> None:
    values = palette_label(tmp_path / "x.png", colours)
    np.testing.assert_array_equal(read_label(tmp_path / "x.png"), values)


def test_palette_against_its_index_is_refused(tmp_path: Path) -> None:
    palette_label(tmp_path / "x.png", [255, 255, 255, 0, 0, 0])
    with pytest.raises(InputError, match=r"(?s)higher index is a darker colour.*x.png"):
        read_label(tmp_path / "x.png")


def write_16bit_rgb_png(path: Path) -> None:
    """Pillow cannot write one: an 8-bit file with its depth byte changed, and the checksum put right."""
    Image.fromarray(picture()).save(path)
    data = bytearray(path.read_bytes())
    data[24] = 16
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(bytes(data))


def defect_16bit_png(path: Path) -> Path:
    Image.fromarray(picture()[..., 0].astype(np.uint16) * 257).save(path / "deep.png")
    return path / "deep.png"


def defect_16bit_rgb_png(path: Path) -> Path:
    write_16bit_rgb_png(path / "deep.png")
    return path / "deep.png"


def defect_16bit_rgb_tif(path: Path) -> Path:
    tifffile.imwrite(path / "deep.tif", picture().astype(np.uint16) * 257, photometric="rgb")
    return path / "deep.tif"


def defect_alpha(path: Path) -> Path:
    Image.fromarray(picture()).convert("RGBA").save(path / "alpha.png")
    return path / "alpha.png"


def defect_truncated_png(path: Path) -> Path:
    Image.fromarray(picture(size=(64, 64))).save(path / "cut.png")
    (path / "cut.png").write_bytes((path / "cut.png").read_bytes()[:-2000])
    return path / "cut.png"


def defect_truncated_jpeg(path: Path) -> Path:
    Image.fromarray(picture(size=(64, 64))).save(path / "cut.jpg")
    (path / "cut.jpg").write_bytes((path / "cut.jpg").read_bytes()[:-1000])
    return path / "cut.jpg"


def defect_truncated_tif(path: Path) -> Path:
    Image.fromarray(picture(size=(64, 64))).save(path / "cut.tif")
    data = (path / "cut.tif").read_bytes()
    (path / "cut.tif").write_bytes(data[: len(data) // 2])
    return path / "cut.tif"


def defect_text(path: Path) -> Path:
    (path / "note.png").write_text("<html>404</html>")
    return path / "note.png"


def defect_empty(path: Path) -> Path:
    (path / "empty.png").touch()
    return path / "empty.png"


def defect_absent(path: Path) -> Path:
    return path / "absent.png"


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (defect_16bit_png, "16-bit picture"),
        (defect_16bit_rgb_png, "16-bit picture"),
        (defect_16bit_rgb_tif, "16-bit|TIFF of shape .20, 24, 3. and type uint16"),
        (defect_alpha, "4 channels"),
        (defect_truncated_png, "truncated"),
        (defect_truncated_jpeg, "truncated"),
        (defect_truncated_tif, "truncated|not a picture"),
        (defect_text, "not a picture"),
        (defect_empty, "not a picture"),
        (defect_absent, "no such file"),
    ],
)
@pytest.mark.parametrize("read", [read_rgb, read_header])
def test_unfit_pictures_are_refused_by_name(tmp_path: Path, make, found: str, read) -> None:
    path = make(tmp_path)
    with pytest.raises(InputError, match=found) as caught:
        read(path)
    assert path.name in str(caught.value)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (defect_16bit_png, "16-bit label"),
        (defect_alpha, r"4 channels \(RGBA\)"),
        (defect_truncated_png, "channels"),
        (defect_absent, "no such file"),
    ],
)
def test_unfit_labels_are_refused_by_name(tmp_path: Path, make, found: str) -> None:
    path = make(tmp_path)
    with pytest.raises(InputError, match=found) as caught:
        read_label(path)
    assert path.name in str(caught.value)


def test_label_saved_as_equal_rgb_is_refused_with_advice(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4, 3), 255, dtype=np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"(?s)3 channels \(RGB\).*convert\('L'\)"):
        read_label(tmp_path / "x.png")
