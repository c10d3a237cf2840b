"""Pictures: upright, in three channels, at most so large; what cannot be decoded says why."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from anban.audit.limits import read_limits
from anban.audit.picture import SIDE, Limits, TooLarge, Unreadable, read_picture
from tests.audit.conftest import encoded, picture_of, scene


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (60, 40), "white")
    image.paste("black", (0, 0, 30, 40))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise: the left half comes on top
    picture = picture_of(image, "JPEG", exif=exif, quality=95)
    assert picture.orientation == 6
    assert picture.size == (40, 60)
    assert picture.rgb.shape == (60, 40, 3)
    assert picture.gray[:25].mean() < 0.1 < 0.9 < picture.gray[35:].mean()


def test_transparent_parts_lie_over_white() -> None:
    image = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 5, 10))
    picture = picture_of(image)
    assert picture.has_alpha
    assert picture.opaque == pytest.approx(0.25)
    assert picture.rgb[0, 0].tolist() == [255, 0, 0]
    assert picture.rgb[0, 10].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("image", "form", "mode", "bits"),
    [
        (Image.fromarray(np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16)), "PNG", "I;16", 16),
        (Image.new("CMYK", (32, 32), (255, 0, 0, 0)), "JPEG", "CMYK", 8),
        (Image.new("1", (32, 32), 1), "PNG", "1", 1),
        (scene(1, (64, 64)).convert("P"), "PNG", "P", 8),
    ],
)
def test_every_mode_becomes_rgb(image: Image.Image, form: str, mode: str, bits: int) -> None:
    picture = picture_of(image, form)
    assert (picture.mode, picture.bits) == (mode, bits)
    assert picture.rgb.dtype == np.uint8
    assert picture.rgb.shape[2] == 3
    if mode == "I;16":  # the whole range of grays arrives
        assert picture.rgb.min() == 0
        assert picture.rgb.max() == 255


def test_sixteen_bit_colour_is_seen_though_pillow_reads_eight() -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(range(6)) * 4 for _ in range(4))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">LLBBBBB", 4, 4, 16, 2, 0, 0, 0))
    content += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    picture = read_picture(io.BytesIO(content), "deep", read_limits()["picture"])
    assert picture.bits == 16


def test_a_large_picture_is_made_smaller_and_keeps_its_own_middle() -> None:
    picture = picture_of(Image.effect_noise((3000, 1500), 60).convert("RGB"), "JPEG")
    assert picture.size == (3000, 1500)
    assert max(picture.rgb.shape) == SIDE
    assert picture.scale == pytest.approx(SIDE / 3000)
    assert picture.detail.shape == (1024, 1024)


def test_frames_are_counted() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    assert picture_of(frames[0], "GIF", save_all=True, append_images=frames[1:]).frames == 3


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
def test_half_a_picture_is_unreadable(form: str) -> None:
    content = encoded(scene(1, (200, 200)), form)
    with pytest.raises(Unreadable):
        read_picture(io.BytesIO(content[: len(content) // 2]), "half", read_limits()["picture"])


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    content = encoded(Image.new("1", (4000, 4000)))
    with pytest.raises(TooLarge, match="4000 x 4000"):
        read_picture(io.BytesIO(content), "large", Limits(most_bytes=1000, most_pixels=1_000_000))
