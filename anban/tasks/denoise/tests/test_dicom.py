"""Real CT slices, those that pydicom ships: read to Hounsfield units, looked over by the doctor, denoised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from pydicom.data import get_testdata_file
from pydicom.filereader import dcmread
from pydicom.uid import ExplicitVRLittleEndian

from anban.errors import InputError
from anban.recipe import load_recipe
from anban.tasks.denoise.doctor import doctor
from anban.tasks.denoise.models.twin import Separated
from anban.tasks.denoise.readers import Tags, read_hounsfield, read_tags
from anban.tasks.denoise.task import DenoiseTask

#: Name -> patient, slice number, side, RescaleIntercept and the median of what is soft tissue, in Hounsfield units. The
#: first one is uncompressed, the others are JPEG 2000.
SLICES = {
    "CT_small.dcm": ("1CT1", 1, 128, -1024, 33),
    "693_J2KI.dcm": ("CQ500-CT-310", 21, 512, -1024, 32),
    "J2K_pixelrep_mismatch.dcm": ("JXD191021006", 7, 512, 0, 34),
}
NOISE = 30
"""Standard deviation of what is added at low dose, in Hounsfield units."""


def sample(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every slice at two doses: as it is, and with noise, stored uncompressed by another slope and intercept."""
    folder = tmp_path_factory.mktemp("dicom")
    draw = np.random.default_rng(0)
    for dose in ("low", "full"):
        (folder / dose).mkdir()
    for name in SLICES:
        (folder / "full" / name).write_bytes(sample(name).read_bytes())
        noisy = read_hounsfield(sample(name), "hu")
        noisy += draw.normal(0, NOISE, noisy.shape)
        data = dcmread(sample(name))
        data.RescaleSlope, data.RescaleIntercept = "0.5", "-4096"
        stored = np.clip(np.rint((noisy + 4096) / 0.5), 0, 2**15 - 1)
        data.set_pixel_data(stored.astype(np.uint16), "MONOCHROME2", 16)
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.save_as(folder / "low" / name)
    return folder


@pytest.mark.parametrize("name", SLICES)
def test_stored_values_become_hounsfield_units(name: str) -> None:
    patient, number, side, intercept, tissue = SLICES[name]
    read = read_hounsfield(sample(name), "hu")
    assert (read.dtype, read.shape) == (np.dtype(np.float32), (side, side))
    np.testing.assert_array_equal(read, dcmread(sample(name)).pixel_array + float(intercept))
    assert np.median(read[(read > -20) & (read < 100)]) == tissue
    assert read_tags(sample(name)) == Tags(patient, number, "MONOCHROME2")


def test_what_is_no_ct_is_refused() -> None:
    with pytest.raises(InputError, match="no RescaleSlope and no RescaleIntercept"):
        read_hounsfield(sample("MR_small.dcm"), "hu")
    with pytest.raises(InputError, match="no DICOM file"):
        read_hounsfield(sample("no_meta.dcm"), "hu")


def test_the_doctor_pairs_and_measures_them(root: Path) -> None:
    report = doctor(root)
    assert report["ok"], report["findings"]
    found = report["splits"]["all"]
    assert (found["slices"], found["patients"], found["size"], found["values"]) == (3, 3, "mixed", "hu")
    assert found["noise"] == pytest.approx(NOISE, rel=0.01)


def test_they_are_denoised_in_hounsfield_units(root: Path, tmp_path: Path) -> None:
    """With a network that changes nothing, what is written is what the file holds, clipped to data.clip."""

    class Nothing(torch.nn.Module):
        def forward(self, noisy: torch.Tensor) -> Separated:
            return Separated(noisy, torch.zeros_like(noisy), noisy)

    task = DenoiseTask(load_recipe("ct/real-cncl", [f"data.root={root}"]).config)
    files = [root / "low" / name for name in SLICES]
    made = list(task.predict(Nothing(), files, tmp_path, "whole", torch.device("cpu")))
    assert [path.name for path in made] == [path.with_suffix(".tif").name for path in files]
    for file, path in zip(files, made, strict=True):
        expected = np.clip(read_hounsfield(file, "hu"), -1024, 3072)
        np.testing.assert_allclose(tifffile.imread(path), expected, atol=0.01)
