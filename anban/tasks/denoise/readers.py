"""CT slices from disk in Hounsfield units, refused rather than guessed when they are not what they should be.

| suffix | what is read |
| --- | --- |
| `.dcm`, `.ima` | DICOM: the stored values times RescaleSlope, plus RescaleIntercept |
| `.tif`, `.tiff` | one page, 16 bits or float |
| `.png` | one channel, 16 bits |
| `.npy` | an array (H, W) |

What the values of the last three mean is a coding: `hu` (Hounsfield units), `hu+1024` (the same, made positive), or
`unit` (0..1 for -1024..3072 HU, as RED-CNN's preparation writes them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pydicom import FileDataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from anban.errors import InputError

DICOM = (".dcm", ".ima")
SUFFIXES = (*DICOM, ".tif", ".tiff", ".png", ".npy")

Coding = Literal["hu", "hu+1024", "unit"]
Pixels = NDArray[np.float32]

_MOST_PIXELS = 2**26  # 8192 x 8192; detectors of today give a quarter of it at most

_UNIT_AT_LEAST, _UNIT_AT_MOST = -0.5, 1.5
# Coding -> factor and offset to Hounsfield units, and the stored values that can be: metal reaches 32767 HU, and
# what lies outside of a scanner's circle is written as -2000 or -3024.
_CODINGS: dict[str, tuple[float, float, float, float]] = {
    "hu": (1.0, 0.0, -4096.0, 32767.0),
    "hu+1024": (1.0, -1024.0, -1.0, 33791.0),
    "unit": (4096.0, -1024.0, _UNIT_AT_LEAST, 8.3),
}


@dataclass(frozen=True)
class Tags:
    """What a DICOM file says besides its pixels."""

    patient: str
    number: int
    photometric: str


def read_hounsfield(path: Path, coding: Coding) -> Pixels:
    """A slice (H, W) in Hounsfield units.

    Args:
        path: of any suffix in `SUFFIXES`.
        coding: of the stored values; DICOM says it itself.

    Raises:
        InputError: missing, unreadable or damaged file; several pages or channels; NaN or infinite pixels; values that
            the coding cannot have; a DICOM file without rescale tags, or one that is no grey picture.
    """
    if path.suffix.lower() in DICOM:
        return _finite(_dicom_pixels(path), path)
    stored = read_stored(path)
    factor, offset, lowest, highest = _CODINGS[coding]
    least, most = float(stored.min()), float(stored.max())
    wrong = least < lowest or most > highest
    if coding == "hu":  # every slice holds air, which is far below water
        wrong |= least >= 0
    else:
        wrong |= (most <= _UNIT_AT_MOST) != (coding == "unit")
    if wrong:
        raise InputError(f"The values run from {least:g} to {most:g}, which '{coding}' cannot have.", where=path,
                         expected="hu: air near -1000; hu+1024: no value below 0; unit: 0 to 1 for -1024 to 3072 HU",
                         do="set data.values to what the files hold, or convert them")  # fmt: skip
    return stored * np.float32(factor) + np.float32(offset)


def sniff_coding(path: Path) -> Coding:
    """The coding that the values of a file are evidently in.

    Raises:
        InputError: they fit none, or do not tell; or the file cannot be read.
    """
    stored = read_stored(path)
    least, most = float(stored.min()), float(stored.max())
    if least < -100:
        return "hu"
    if least >= _UNIT_AT_LEAST and most <= _UNIT_AT_MOST:
        return "unit"
    if least >= 0 and most > 500:
        return "hu+1024"
    raise InputError(f"The values run from {least:g} to {most:g}, which does not tell their coding.", where=path,
                     expected="Hounsfield units, the same plus 1024, or 0 to 1",
                     do="set data.values to one of hu, hu+1024, unit")  # fmt: skip


def read_stored(path: Path) -> Pixels:
    """The stored values (H, W) of a file that is no DICOM.

    Raises:
        InputError: missing or damaged file, several pages or channels, 8 bits, NaN or infinite pixels.
    """
    decode: dict[str, Callable[[Path], NDArray[Any]]] = {".npy": _npy, ".png": _png}
    try:
        stored = decode.get(path.suffix.lower(), _tiff)(path)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError("There is no such file.", where=path) from None
    except Exception as error:  # the many ways a file can be broken
        why = str(error) or type(error).__name__
        raise InputError(f"The file is damaged or no picture ({why}).", where=path,
                         do="copy it again") from None  # fmt: skip
    while stored.ndim > 2 and stored.shape[0] == 1:  # CNCL's pages
        stored = stored[0]
    if stored.ndim != 2 or not stored.size or stored.dtype == np.uint8 or stored.dtype.kind not in "iuf":
        raise InputError(f"An array of shape {stored.shape} and type {stored.dtype}.", where=path,
                         expected="one slice (H, W) of 16 bits or floating numbers")  # fmt: skip
    return _finite(stored.astype(np.float32), path)


def read_tags(path: Path) -> Tags:
    """Patient, slice number and photometric interpretation of a DICOM file, without its pixels.

    Raises:
        InputError: see `read_hounsfield`, and a file without PatientID or InstanceNumber.
    """
    with _decoding(path):
        data = _opened(path, pixels=False)
        for tag in ("PatientID", "InstanceNumber"):
            if data.get(tag) in (None, ""):
                raise InputError(f"The DICOM file has no {tag}.", where=path,
                                 expected="patient and slice number, by which low and full dose are paired")  # fmt: skip
        return Tags(str(data.PatientID), int(data.InstanceNumber), str(data.PhotometricInterpretation))


def _dicom_pixels(path: Path) -> Pixels:
    with _decoding(path):
        data = _opened(path, pixels=True)
        shape = [int(data.get(tag) or 1) for tag in ("NumberOfFrames", "Rows", "Columns", "SamplesPerPixel")]
        _refuse_huge(shape, path)
        stored = data.pixel_array
        if stored.ndim != 2:
            raise InputError(f"The DICOM file holds an array of shape {stored.shape}.", where=path,
                             expected="one slice per file")  # fmt: skip
        slope, intercept = np.float32(data.RescaleSlope), np.float32(data.RescaleIntercept)
        return stored.astype(np.float32) * slope + intercept


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside becomes an InputError: values are decoded when they are asked for."""
    try:
        yield
    except InputError:
        raise
    except (
        Exception
    ) as error:  # a codec that is missing, a stream that ends too early, a tag that is no number
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"The DICOM file cannot be decoded ({why}).", where=path,
                         do="copy it again, or convert it to uncompressed DICOM, with dcmdjpeg or gdcmconv --raw") from None  # fmt: skip


def _opened(path: Path, *, pixels: bool) -> FileDataset:
    try:
        # It would be inflated as a whole, whatever its size.
        if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise InputError("The DICOM file is deflated.", where=path,
                             do="convert it to uncompressed DICOM, with dcmconv +te")  # fmt: skip
        data = dcmread(path, stop_before_pixels=not pixels)
    except FileNotFoundError:
        raise InputError("There is no such file.", where=path) from None
    except (InvalidDicomError, EOFError, OSError) as error:
        raise InputError(f"This is no DICOM file ({error}).", where=path) from None
    missing = [tag for tag in ("RescaleSlope", "RescaleIntercept") if data.get(tag) is None]
    if missing:
        raise InputError(f"The DICOM file has no {' and no '.join(missing)}.", where=path,
                         expected="the rescale tags, without which stored values mean nothing in Hounsfield units",
                         do="export the series again with its tags; nothing is assumed")  # fmt: skip
    if data.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError(f"The DICOM file is {data.get('PhotometricInterpretation')}.", where=path,
                         expected="one grey channel, MONOCHROME1 or MONOCHROME2")  # fmt: skip
    return data


def _png(path: Path) -> NDArray[Any]:
    with Image.open(path, formats=["PNG"]) as image:
        _refuse_huge((image.height, image.width), path)
        return np.asarray(image)


def _npy(path: Path) -> NDArray[Any]:
    stored = np.lib.format.open_memmap(path, mode="r")  # no pickles, and no larger than the file
    _refuse_huge(stored.shape, path)
    return np.array(stored)


def _tiff(path: Path) -> NDArray[Any]:
    with tifffile.TiffFile(path) as file:
        # Not all of its pages: a damaged file may have one after the other without end.
        first = file.pages[0]
        with suppress(IndexError):
            raise InputError(f"Several pages, the second of shape {file.pages[1].shape}.", where=path,
                             expected="one slice per file")  # fmt: skip
        _refuse_huge(first.shape, path)
        if (
            len(first.dataoffsets) != math.prod(first.chunked)
            or sum(first.databytecounts) > path.stat().st_size
        ):
            raise InputError("The parts of the picture are not those that the file has.", where=path,
                             do="copy it again")  # fmt: skip
        return np.asarray(first.asarray())


def _refuse_huge(shape: Sequence[int], path: Path) -> None:
    """Refuse what a file says its shape is before memory is asked for."""
    if math.prod(shape) > _MOST_PIXELS:
        raise InputError(f"An array of shape {tuple(shape)}.", where=path,
                         expected=f"one slice of at most {_MOST_PIXELS} pixels")  # fmt: skip


def _finite(pixels: Pixels, path: Path) -> Pixels:
    broken = int((~np.isfinite(pixels)).sum())
    if broken:
        raise InputError(f"{broken} of {pixels.size} pixels are NaN or infinite.", where=path,
                         expected="finite values", do="mend or leave out this slice")  # fmt: skip
    return pixels
