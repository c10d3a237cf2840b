"""Small CT slices at two doses, written in whatever way a test needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.filereader import dcmread

SIDE = 32


def doses(seed: int = 0, side: int = SIDE) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A disc of tissue in air, low dose and full dose, whole Hounsfield units."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] - side / 2
    full = np.where(np.hypot(rows, columns) < side / 3, 40 + 10 * (seed % 5), -970) + draw.integers(
        -3, 4, (side, side)
    )
    low = full + draw.integers(-40, 41, full.shape)
    return low.astype(np.float32), full.astype(np.float32)


def write_npy(root: Path, patients: dict[str, int], side: int = SIDE) -> Path:
    """`<split>/<patient>_<slice>_{input,target}.npy` in RED-CNN's coding; the keys are "split/patient"."""
    for number, (place, slices) in enumerate(patients.items()):
        for index in range(slices):
            path = root / f"{place}_{index}"
            path.parent.mkdir(parents=True, exist_ok=True)
            for word, pixels in zip(("input", "target"), doses(10 * number + index, side), strict=True):
                np.save(path.with_name(f"{path.name}_{word}.npy"), (pixels + 1024) / 4096)
    return root


def dicom(path: Path, patient: str = "L001", number: int = 1, **tags: object) -> Path:
    """pydicom's own CT slice under another name; a tag that is None is taken out."""
    data: Dataset = dcmread(str(get_testdata_file("CT_small.dcm")))
    data.PatientID, data.InstanceNumber = patient, number
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path)
    return path
