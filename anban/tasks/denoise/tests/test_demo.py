"""Generated slices: what is in them, and that their noise is that of a scanner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anban.errors import InputError
from anban.tasks.denoise.data import DenoiseData
from anban.tasks.denoise.demo import Scanner, make_slice, phantom, scan, write_demo

SIZE = 64
FEW = Scanner(views=64)


def test_a_phantom_is_a_body_within_the_circle() -> None:
    image = phantom(3, SIZE)
    rows, columns = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    assert (image[np.hypot(rows, columns) > 0.95] == -1000).all()
    assert {-1000.0, -100.0, 45.0} <= set(np.unique(image))
    assert np.array_equal(image, phantom(3, SIZE))
    assert not np.array_equal(image, phantom(4, SIZE))


def test_reconstruction_without_noise_gives_the_phantom_back() -> None:
    image = phantom(3, SIZE)
    quiet = Scanner(photons=1e12, electronic=0.0, views=96)
    restored = scan(image, quiet, 1.0, np.random.default_rng(0))
    body = image == 45
    assert np.median(restored[body]) == pytest.approx(45, abs=15)
    assert np.median(restored[image < -700]) < -700


def test_noise_grows_as_the_dose_falls() -> None:
    image = phantom(3, SIZE)
    quiet = scan(image, Scanner(photons=1e12, electronic=0.0, views=64), 1.0, np.random.default_rng(0))
    noise = [
        (scan(image, FEW, dose, np.random.default_rng(1)) - quiet)[16:48, 16:48].std()
        for dose in (1.0, 0.25, 0.05)
    ]
    # Poisson counts: the deviation goes with one over the root of the dose.
    assert noise[1] / noise[0] == pytest.approx(2, rel=0.15)
    assert noise[2] / noise[1] > 5**0.5 * 0.9


def test_slices_are_a_function_of_their_seed() -> None:
    for one, other in zip(make_slice(5, SIZE, FEW), make_slice(5, SIZE, FEW), strict=True):
        np.testing.assert_array_equal(one, other)
    low, full = make_slice(5, SIZE, FEW)
    assert 2 < (low - full).std() < 100


def test_the_folder_is_one_that_the_task_reads(tmp_path: Path) -> None:
    options = {"train": 2, "val": 1, "test": 1, "slices": 1, "size": 32, "scanner": Scanner(views=16)}
    root = write_demo(tmp_path / "demo", **options)  # type: ignore[arg-type]
    report = DenoiseData(str(root)).check()
    assert report["patients"] == {"train": ["P001", "P002"], "val": ["P003"], "test": ["P004"]}
    assert report["values"] == {".png": "hu+1024"}
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    write_demo(tmp_path / "demo", **options)  # type: ignore[arg-type]
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.png")} == before
    with pytest.raises(InputError, match="slices is -1"):
        write_demo(tmp_path / "other", slices=-1)
