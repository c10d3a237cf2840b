"""One decoded picture: made once per file, upright and in three channels, shared by all checks."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from anban.audit.formats import DECODERS
from anban.recipe.schema import Count

#: Longest side of `Picture.rgb`.
SIDE = 2048

#: EXIF tag of the orientation; 1 is upright.
ORIENTATION = 0x0112

#: Pillow's modes whose channels have more than eight bits.
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Limits:
    """What is read at all; see limits.yaml."""

    most_bytes: Count
    most_pixels: Count


class Unreadable(Exception):
    """The picture cannot be decoded to its end; the text says why."""


class TooLarge(Exception):
    """The picture has more pixels than the limits allow; the text says how many."""


@dataclass(frozen=True)
class Picture:
    """A picture as the checks see it.

    Attributes:
        name: path for messages only: no check may look at it.
        size: width and height in own pixels, upright (EXIF applied).
        rgb: (H, W, 3) uint8, upright, transparent parts over white, longest side at most `SIDE`.
        scale: pixels of `rgb` per own pixel, at most 1.
        format: Pillow's name of it (JPEG, PNG ...).
        mode: Pillow's mode as stored (RGB, CMYK, I;16 ...).
        bits: per channel.
        has_alpha: whether any pixel is not opaque.
        opaque: share of pixels that are more than half opaque, 0 to 1.
        frames: how many the file holds.
        orientation: EXIF's, 1 to 8; 1 is upright.
        quantization: a JPEG's tables, by number; empty otherwise.
        detail: (h, w) uint8, gray, at most 1024 pixels a side: the middle in own pixels, as stored (not turned).
        memo: what one check has computed and others want.
    """

    name: str
    size: tuple[int, int]
    rgb: NDArray[np.uint8]
    scale: float
    format: str
    mode: str
    bits: int
    has_alpha: bool
    opaque: float
    frames: int
    orientation: int
    quantization: Mapping[int, tuple[int, ...]]
    detail: NDArray[np.uint8]
    memo: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def gray(self) -> NDArray[np.float32]:
        """(H, W), luma of `rgb`, 0 to 1."""
        weights = np.array([0.299, 0.587, 0.114], np.float32) / 255
        return (self.rgb.astype(np.float32) @ weights).astype(np.float32, copy=False)


def read_picture(file: IO[bytes], name: str, limits: Limits) -> Picture:
    """Decode a picture, its first frame if it has several.

    Raises:
        Unreadable: it is truncated, damaged, or in no format that Pillow knows.
        TooLarge: it has more pixels than `limits.most_pixels`; they were not decoded.
    """
    with _decoding(), Image.open(file, formats=decoders()) as image:
        width, height = image.size
        if width * height > limits.most_pixels:
            raise TooLarge(f"{width} x {height} pixels")
        stored, form = image.mode, image.format or ""
        frames = getattr(image, "n_frames", 1)
        quantization = {key: tuple(table) for key, table in getattr(image, "quantization", {}).items()}
        bits = _bits(image)
        image.load()
        orientation = int(image.getexif().get(ORIENTATION) or 1)
        orientation = orientation if 1 <= orientation <= 8 else 1
        flat, opaque, has_alpha = _opaque(image)
        detail = _middle(flat)
        turned = orientation >= 5
        if orientation != 1:
            flat.getexif()[ORIENTATION] = orientation
            flat = ImageOps.exif_transpose(flat)
        scale = min(1.0, SIDE / max(width, height))
        if scale < 1:
            shape = (max(1, round(flat.width * scale)), max(1, round(flat.height * scale)))
            flat = flat.resize(shape, Image.Resampling.LANCZOS, reducing_gap=3.0)
        return Picture(
            name=name,
            size=(height, width) if turned else (width, height),
            rgb=np.asarray(flat),
            scale=scale,
            format=form,
            mode=stored,
            bits=bits,
            has_alpha=has_alpha,
            opaque=opaque,
            frames=frames,
            orientation=orientation,
            quantization=quantization,
            detail=detail,
        )


@cache
def decoders() -> tuple[str, ...]:
    """Those of `DECODERS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in DECODERS if name in Image.OPEN)


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Whatever a decoder raises on damaged bytes is one error; what it only warns of is silent."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except TooLarge:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable("its header is damaged") from error
    except MemoryError as error:
        raise Unreadable("it asks for more memory than there is") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, KeyError, ...
        raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _bits(image: Image.Image) -> int:
    """Bits per channel as stored; Pillow reads 16-bit colour PNGs as eight bits, so their header is asked."""
    raw = [str(tile[3]) for tile in getattr(image, "tile", [])]
    deep = image.mode in DEEP_MODES or any(";16" in mode for mode in raw)
    return 16 if deep else 1 if image.mode == "1" else 8


def _opaque(image: Image.Image) -> tuple[Image.Image, float, bool]:
    """The picture in RGB over white, the share of opaque pixels, and whether any is not opaque."""
    if image.mode in DEEP_MODES:
        values = np.asarray(image).astype(np.float32)
        low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else (values.min(), values.max())
        image = Image.fromarray((255 * (values - low) / max(high - low, 1e-6)).clip(0, 255).astype(np.uint8))
    transparent = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if not transparent:
        return image.convert("RGB"), 1.0, False
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return image.convert("RGB"), 1.0, False
    share = sum(alpha.histogram()[128:]) / (image.width * image.height)
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    return white, share, True


def _middle(image: Image.Image, side: int = 1024) -> NDArray[np.uint8]:
    left, top = max(0, image.width - side) // 2, max(0, image.height - side) // 2
    box = (left, top, min(image.width, left + side), min(image.height, top + side))
    return np.asarray(image.crop(box).convert("L"))
