"""Slices from disk: encodings, pairs, patients, patches, and everything that is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.filereader import dcmread

from anban.data.augment import build_augment
from anban.errors import InputError
from anban.recipe.schema import Collection
from anban.tasks.denoise.data import DenoiseData, Preparation
from anban.tasks.denoise.doctor import SUMMARY, doctor
from anban.tasks.denoise.layouts import find_layout, patient_of
from anban.tasks.denoise.readers import read_hounsfield, sniff_coding
from anban.tasks.denoise.tests.slices import SIDE, dicom, doses, write_npy

NOTHING = build_augment({}, Collection({}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_npy(tmp_path / "set", {"train/L001": 2, "val/L002": 1, "test/L003": 1})


# ---- readers -----------------------------------------------------------------------------------------------


def test_dicom_is_rescaled_by_its_tags(tmp_path: Path) -> None:
    stored = dcmread(str(get_testdata_file("CT_small.dcm"))).pixel_array
    path = dicom(tmp_path / "slice.IMA", RescaleSlope=2, RescaleIntercept=-1000)
    read = read_hounsfield(path, "hu")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, stored * 2.0 - 1000)


def test_encodings_of_one_slice_give_the_same_units(tmp_path: Path) -> None:
    low, _ = doses()
    tifffile.imwrite(tmp_path / "float.tif", low[None])  # CNCL's pages
    tifffile.imwrite(tmp_path / "int.tiff", low.astype(np.int16))
    Image.fromarray((low + 1024).astype(np.uint16)).save(tmp_path / "slice.png")
    np.save(tmp_path / "slice.npy", ((low + 1024) / 4096).astype(np.float64))
    wanted = {"float.tif": "hu", "int.tiff": "hu", "slice.png": "hu+1024", "slice.npy": "unit"}
    for name, coding in wanted.items():
        assert sniff_coding(tmp_path / name) == coding, name
        np.testing.assert_allclose(read_hounsfield(tmp_path / name, coding), low, atol=1e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "coding"),
    [("hu", "unit"), ("hu+1024", "hu"), ("unit", "hu+1024"), ("unit", "hu"), ("hu", "hu+1024")],
)
def test_values_of_another_range_are_refused(tmp_path: Path, values: str, coding: str) -> None:
    low, _ = doses()
    stored = {"hu": low, "hu+1024": low + 1200, "unit": (low + 1200) / 4096}[values]
    np.save(tmp_path / "slice.npy", stored)
    with pytest.raises(InputError, match="cannot have") as error:
        read_hounsfield(tmp_path / "slice.npy", coding)  # type: ignore[arg-type]
    assert "data.values" in str(error.value)


def test_values_that_do_not_tell_their_coding_are_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "slice.npy", np.full((8, 8), 200.0))
    with pytest.raises(InputError, match="does not tell their coding"):
        sniff_coding(tmp_path / "slice.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    low, _ = doses()
    low[3, 4:6] = value
    np.save(tmp_path / "slice.npy", low)
    with pytest.raises(InputError, match=f"2 of {SIDE * SIDE} pixels are NaN or infinite"):
        read_hounsfield(tmp_path / "slice.npy", "hu")


@pytest.mark.parametrize("tag", ["RescaleSlope", "RescaleIntercept"])
def test_dicom_without_rescale_tags_is_refused(tmp_path: Path, tag: str) -> None:
    path = dicom(tmp_path / "slice.dcm", **{tag: None})
    with pytest.raises(InputError, match=f"has no {tag}") as error:
        read_hounsfield(path, "hu")
    assert "nothing is assumed" in str(error.value)


def test_what_is_no_slice_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "colour.tif", np.zeros((8, 8, 3), np.uint16))
    Image.new("L", (8, 8)).save(tmp_path / "bytes.png")
    (tmp_path / "broken.dcm").write_bytes(b"nothing")
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    for name, what in {
        "colour.tif": "one slice",
        "bytes.png": "one slice",
        "broken.dcm": "no DICOM file",
        "broken.npy": "damaged",
        "absent.npy": "no such file",
    }.items():
        with pytest.raises(InputError, match=what):
            read_hounsfield(tmp_path / name, "hu")
    path = dicom(tmp_path / "rgb.dcm", PhotometricInterpretation="RGB")
    with pytest.raises(InputError, match="one grey channel"):
        read_hounsfield(path, "hu")


# ---- pairs -------------------------------------------------------------------------------------------------


def test_pairs_are_found_by_the_words_for_the_dose(tmp_path: Path) -> None:
    low, full = doses()
    places = {
        "quarter_1mm/L067/quarter_1mm/07.npy": "full_1mm/L067/full_1mm/07.npy",
        "noisy/0001.tif": "clean/0001.tif",
        "L506_18_input.npy": "L506_18_target.npy",
    }
    for pair in places.items():
        for name, pixels in zip(pair, (low, full), strict=True):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, pixels) if path.suffix == ".tif" else np.save(path, pixels)
    found = {pair.low.relative_to(tmp_path).as_posix(): pair for pair in find_layout(tmp_path).pairs}
    assert {name: pair.full.relative_to(tmp_path).as_posix() for name, pair in found.items()} == places
    assert [pair.patient for pair in found.values()] == [None, "L506", "L067"] or {
        pair.patient for pair in found.values()
    } == {"L067", "L506", None}


def test_patients_are_letters_with_a_number() -> None:
    assert patient_of(["P01", "0007"]) == "P01"
    assert patient_of(["set3", "l506_018"]) == "L506"
    assert patient_of(["images", "0001"]) is None


def test_dicom_is_paired_by_patient_and_slice_number(tmp_path: Path) -> None:
    dicom(tmp_path / "quarter" / "one.0815.IMA", "L002", 7)
    dicom(tmp_path / "full" / "two.4711.IMA", "L002", 7)
    (pair,) = find_layout(tmp_path).pairs
    assert (pair.name, pair.patient, pair.photometric) == ("L002/0007", "L002", "MONOCHROME2")
    data = DenoiseData(str(tmp_path), train=None, val=None, test=["L002"], patch=None)
    assert data.check()["sizes"] == {"test": "128x128"}


def test_the_four_lists_of_cncl(tmp_path: Path) -> None:
    for name, pixels in zip(("noisy", "clean"), doses(), strict=True):
        (tmp_path / name).mkdir()
        for number in (1, 2, 3):
            tifffile.imwrite(tmp_path / name / f"{number}.tif", pixels + number)
        for split, lines in {"train": "1.tif\n2.tif\n", "test": "3.tif\n"}.items():
            (tmp_path / f"{split}_{name}.txt").write_text(lines)
    layout = find_layout(tmp_path)
    assert layout.kind == "lists"
    assert [(pair.name, pair.split) for pair in layout.pairs] == [
        ("train/1", "train"), ("train/2", "train"), ("test/3", "test")
    ]  # fmt: skip
    (tmp_path / "train_clean.txt").write_text("1.tif\n")
    with pytest.raises(InputError, match="2 noisy and 1 clean"):
        find_layout(tmp_path)
    (tmp_path / "train_clean.txt").write_text("1.tif\n9.tif\n")
    with pytest.raises(InputError, match="a file that is not there"):
        _ = DenoiseData(str(tmp_path)).found


def test_a_slice_without_its_counterpart_is_refused(root: Path) -> None:
    (root / "train" / "L001_1_target.npy").unlink()
    with pytest.raises(InputError, match="1 files at low dose and 0 at full dose"):
        _ = DenoiseData(str(root)).found


def test_mixed_photometric_interpretations_are_refused(tmp_path: Path) -> None:
    for dose in ("low", "full"):
        dicom(tmp_path / dose / "1.dcm", number=1)
        dicom(tmp_path / dose / "2.dcm", number=2, PhotometricInterpretation="MONOCHROME1")
    with pytest.raises(InputError, match="mixed photometric interpretation"):
        _ = DenoiseData(str(tmp_path)).found


def test_a_folder_without_doses_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "slice.npy", doses()[0])
    with pytest.raises(InputError, match="no slices at two doses"):
        find_layout(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        find_layout(tmp_path / "absent")


# ---- the section -------------------------------------------------------------------------------------------


def test_roles_are_splits_patients_or_patterns(root: Path) -> None:
    data = DenoiseData(str(root), train=["L001", "L002"], val=None, test=["test/*"])
    assert [pair.name for pair in data.pairs("train")] == ["train/L001_0", "train/L001_1", "val/L002_0"]
    assert [pair.patient for pair in data.pairs("test")] == ["L003"]
    assert len(DenoiseData(str(root), train=["train"], limit=1).pairs("train")) == 1
    with pytest.raises(InputError, match="left out"):
        data.pairs("val")
    with pytest.raises(InputError, match="'L009' fits no slice") as error:
        DenoiseData(str(root), train=["L009"]).pairs("train")
    assert "L001, L002, L003" in str(error.value)


def test_a_patient_in_two_roles_is_refused_unless_meant(root: Path) -> None:
    write_npy(root, {"test/L001": 3})
    with pytest.raises(InputError, match=r"patient L001 is in 'train' and in 'test'"):
        DenoiseData(str(root)).check()
    warnings = DenoiseData(str(root), leak="warn").check()["warnings"]
    assert len(warnings) == 1
    assert "L001" in warnings[0]


def test_unknown_patients_are_told(tmp_path: Path) -> None:
    write_npy(tmp_path, {"train/1": 1, "test/2": 1})
    report = DenoiseData(str(tmp_path), val=None).check()
    assert "the patient of 2 slices is not known" in report["warnings"][0]
    assert report["patients"] == {"train": [], "test": []}


def test_the_fingerprint_is_of_the_contents(root: Path) -> None:
    before = DenoiseData(str(root)).check()
    assert before["fingerprint"] == DenoiseData(str(root)).check()["fingerprint"]
    assert (before["splits"], before["values"]) == ({"train": 2, "val": 1, "test": 1}, {".npy": "unit"})
    path = root / "train" / "L001_0_input.npy"
    pixels = np.load(path)
    pixels[0, 0] += 0.01
    np.save(path, pixels)
    assert DenoiseData(str(root)).check()["fingerprint"] != before["fingerprint"]


def test_two_sizes_of_one_slice_are_refused(root: Path) -> None:
    np.save(root / "val" / "L002_0_target.npy", np.zeros((8, 8)) + np.eye(8) / 2)
    with pytest.raises(InputError, match=r"Low dose has \(32, 32\) pixels, full dose \(8, 8\)"):
        DenoiseData(str(root)).check()


def test_preparation_clips_then_scales(root: Path) -> None:
    pair = DenoiseData(str(root)).slices("train")[0]
    noisy, clean, scale = Preparation((-160, 240), "range")(pair)
    assert (noisy.min(), clean.min()) == (0, 0)
    torch.testing.assert_close(scale.undo(clean), pair.full.clamp(-160, 240))
    noisy, clean, scale = Preparation((-1024, 3072), "deviation")(pair)
    assert float(noisy.mean()) == pytest.approx(0, abs=1e-5)
    assert float(noisy.std(correction=0)) == pytest.approx(1)
    torch.testing.assert_close(scale.undo(clean), pair.full, atol=1e-3, rtol=0)
    by_variance, _, _ = Preparation((-1024, 3072), "variance")(pair)
    torch.testing.assert_close(by_variance * scale.divisor, noisy)


def test_patches_are_a_function_of_epoch_and_index(root: Path) -> None:
    data = DenoiseData(str(root), patch=16, patches=3)
    patches, again = (data.dataset("train", NOTHING, seed=4) for _ in range(2))
    assert len(patches) == 6
    assert patches[0, 5]["noisy"].shape == (1, 16, 16)
    assert torch.equal(patches[2, 4]["noisy"], again[2, 4]["noisy"])
    assert not torch.equal(patches[2, 4]["noisy"], patches[3, 4]["noisy"])
    whole = data.dataset("train")
    assert len(whole) == 2
    assert whole[1]["noisy"].shape == (1, SIDE, SIDE)
    shown = patches[0, 0]
    offsets = torch.stack([whole[0]["noisy"].unfold(1, 16, 1).unfold(2, 16, 1)[0, i] for i in range(17)])
    same = (offsets == shown["noisy"]).flatten(2).all(dim=2)
    assert int(same.sum()) == 1, "a patch is a part of its slice"
    assert len(pickle.dumps(patches)) > 0
    with pytest.raises(InputError, match="side of 32 pixels"):
        DenoiseData(str(root), patch=64).dataset("train", NOTHING)


# ---- the doctor --------------------------------------------------------------------------------------------


def test_the_doctor_finds_everything_at_once(root: Path) -> None:
    assert doctor(root)["ok"]
    write_npy(root, {"test/L001": 4})
    (root / "val" / "L002_0_input.npy").unlink()
    broken = np.load(path := root / "test" / "L003_0_target.npy")
    broken[0, 0] = np.nan
    np.save(path, broken)
    report = doctor(root)
    told = " ".join(finding["what"] for finding in report["findings"] if finding["level"] == "error")
    assert not report["ok"]
    for what in ("0 files at low dose", "NaN", "patient L001 is in 'test' and in 'train'"):
        assert what in told
    assert set(SUMMARY) <= set(report["splits"]["train"])
    assert 15 < report["splits"]["train"]["noise"] < 35
    assert doctor(root / "absent")["layout"] is None
