"""Pictures and label maps from disk, refused rather than guessed when they are not what they should be."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from anban.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
LOSSY_SUFFIXES = (".jpg", ".jpeg")
# What Pillow may take a file for, whatever its suffix says; some of its other formats start programs or read further files.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")

_PICTURE_MODES = ("RGB", "L", "P")
_LABEL_MODES = ("L", "P", "1")
_TIFF_BITS_PER_SAMPLE = 258
# What a complete file of the format ends with; a file that ends otherwise is decoded to find out.
_ENDINGS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}


@dataclass(frozen=True)
class Header:
    """What a file says about itself: `size` (height, width) in pixels, Pillow's mode, bits per channel."""

    size: tuple[int, int]
    mode: str
    bits: int


def read_header(path: str | Path, *, label: bool = False) -> Header:
    """Size, mode and bit depth of a picture (or label map), checked as `read_rgb` (or `read_label`) would.

    PNG and JPEG are not decoded as long as they end as they should; other formats are.

    Raises:
        InputError: missing, unreadable or truncated file; 16 bits; a number of channels not accepted.
    """
    with _opened(path) as image:
        header = _described(path, image)
        _refuse_unfit(path, header, label)
        ending = _ENDINGS.get(image.format or "")
        if ending is None or _read_at(path, -len(ending), len(ending)) != ending:
            image.load()
        return header


def read_rgb(path: str | Path) -> NDArray[np.uint8]:
    """An 8-bit picture as uint8 (H, W, 3), 0..255; one grey channel is repeated three times.

    Raises:
        InputError: missing, unreadable or truncated file; 16 bits; an alpha or further channel.
    """
    with _opened(path) as image:
        _refuse_unfit(path, _described(path, image), label=False)
        return np.array(image.convert("RGB"), dtype=np.uint8)


def read_label(path: str | Path, *, ordered: bool = True) -> NDArray[np.uint8]:
    """The stored values of a label map as uint8 (H, W).

    These are the grey values, the indices of a palette, or the 0 and 1 of a 1-bit file.

    Args:
        path: the file.
        ordered: whether a higher value means more of something, as a mask's does; class numbers have no order.

    Raises:
        InputError: missing, unreadable or truncated file; RGB; 16 bits; for ordered values a palette whose colours
            get darker as the index grows, so that index and colour would say opposite things.
    """
    with _opened(path) as image:
        _refuse_unfit(path, _described(path, image), label=True)
        values = np.array(image, dtype=np.uint8)
        if image.mode == "P" and ordered:
            _refuse_reversed_palette(path, image, values)
        return values


def picture_files(given: Sequence[Path]) -> list[Path]:
    """Pictures, and those in folders and below, sorted folder by folder; results are named after them.

    Raises:
        InputError: a folder without pictures, or two pictures of one name.
    """
    found: list[Path] = []
    for each in given:
        inside = [p for p in each.rglob("*") if p.suffix.lower() in SUFFIXES] if each.is_dir() else [each]
        if not inside:
            raise InputError("There is no picture in this folder.", where=each, expected=", ".join(SUFFIXES))
        found += sorted(inside)
    stems = [path.stem for path in found]
    if repeated := [path for path in found if stems.count(path.stem) > 1]:
        raise InputError(
            f"Several pictures are called '{repeated[0].stem}'.",
            where=repeated[0],
            expected="different names, after which the results are named",
            do="predict their folders one by one",
        )
    return found


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The file opened by Pillow; whatever goes wrong inside, decoding included, becomes an InputError."""
    try:
        with warnings.catch_warnings():
            # Above the warning's limit there is a second one that raises; between them a scene is only large.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError("no such file", where=path, do="check the path and the list that names it") from None
    except Image.DecompressionBombError as error:
        raise InputError(
            f"the picture is too large to decode at once ({error})", where=path, do="cut it into tiles"
        ) from None
    except UnidentifiedImageError:
        raise InputError(
            f"not a picture that can be read{_tiff_note(path)}",
            where=path,
            expected="an 8-bit PNG, JPEG, TIFF or BMP",
            do="copy the file again, or convert it to PNG",
        ) from None
    except Exception as error:  # the many ways a picture can be broken
        raise InputError(
            f"the picture is truncated or damaged ({str(error) or type(error).__name__})",
            where=path,
            expected="a complete 8-bit PNG, JPEG, TIFF or BMP",
            do="copy or download the file again",
        ) from None


def _described(path: str | Path, image: Image.Image) -> Header:
    bits = 16 if image.mode.startswith("I;16") else 32 if image.mode in ("I", "F") else 8
    # Pillow opens 16-bit colour as 8-bit "RGB" and drops the low byte without a word: ask the file itself.
    if image.format == "PNG":
        bits = max(bits, *_read_at(path, 24, 1))
    elif image.format == "TIFF":
        per_channel = image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, 8)  # type: ignore[attr-defined]
        bits = max(bits, *np.atleast_1d(per_channel).tolist())
    return Header((image.height, image.width), image.mode, bits)


def _read_at(path: str | Path, position: int, count: int) -> bytes:
    """Bytes of a file from `position` on, counted from its end if negative."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(position if position >= 0 else max(0, size + position))
        return file.read(count)


def _refuse_unfit(path: str | Path, header: Header, label: bool) -> None:
    expected = "8 bits, one channel" if label else "8 bits per channel, red green blue"
    if header.bits > 8:
        how = "convert it to 8 bits, a label to one value per class; nothing is rescaled silently"
        raise InputError(
            f"{header.bits}-bit {'label' if label else 'picture'}", where=path, expected=expected, do=how
        )
    if label and header.mode not in _LABEL_MODES:
        how = "save one channel of values, not colours; if the channels are equal: Image.open(f).convert('L').save(f)"
        channels = {"LA": 2, "PA": 2}.get(header.mode, len(header.mode))
        raise InputError(
            f"the label has {channels} channels ({header.mode})", where=path, expected=expected, do=how
        )
    if not label and header.mode not in _PICTURE_MODES:
        channels = {"LA": 2, "PA": 2}.get(header.mode, len(header.mode))
        how = "drop the extra channel: Image.open(f).convert('RGB').save(f)"
        raise InputError(
            f"the picture has {channels} channels ({header.mode})", where=path, expected=expected, do=how
        )


def _refuse_reversed_palette(path: str | Path, image: Image.Image, values: NDArray[np.uint8]) -> None:
    colours = np.array(image.getpalette("RGB") or [], dtype=np.int64).reshape(-1, 3)
    used = np.unique(values)
    if used[-1] >= len(colours):
        return
    brightness = colours[used].sum(axis=1)
    if (np.diff(brightness) < 0).any():
        raise InputError(
            f"palette label in which a higher index is a darker colour (indices {used[:8].tolist()})",
            where=path,
            expected="index 0 dark (no change), the other index bright (change)",
            do="save the label as one grey channel, 0 no change and 255 change",
        )


def _tiff_note(path: str | Path) -> str:
    """For a TIFF that Pillow cannot open: what it holds, so that the message can say why."""
    if Path(path).suffix.lower() not in (".tif", ".tiff"):
        return ""
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            return f": a TIFF of shape {page.shape} and type {page.dtype}"
    except Exception:
        return ""
