"""Generated scenes: pure functions of their seed, with a label for buildings and for nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anban.errors import InputError
from anban.tasks.change.demo import SPLITS, SceneSettings, make_scene, scene_seed, write_demo

NUISANCES = ("season", "light", "shift", "noise", "trees", "cars", "shadows", "surfaces")
SMALL = SceneSettings(size=64)
OFF: dict[str, Any] = dict.fromkeys(NUISANCES, 0.0)
CALM = replace(SMALL, **OFF)


@pytest.mark.parametrize("size", [32, 75, 128])
def test_a_scene_has_two_colour_pictures_and_a_label_of_0_and_255(size: int) -> None:
    a, b, label = make_scene(
        scene_seed(0, "train", 1), SceneSettings(size=size, unchanged=0, buildings=(6, 9))
    )
    assert a.shape == b.shape == (size, size, 3)
    assert label.shape == (size, size)
    assert a.dtype == b.dtype == label.dtype == np.uint8
    assert set(np.unique(label)) == {0, 255}


def test_a_scene_depends_on_seed_and_settings_only() -> None:
    first = make_scene(7, SMALL)
    make_scene(8, SMALL)
    again = make_scene(7, SMALL)
    assert all(x.tobytes() == y.tobytes() for x, y in zip(first, again, strict=True))
    assert first[0].tobytes() != make_scene(8, SMALL)[0].tobytes()


def test_the_usual_settings_change_a_few_percent_of_the_pixels() -> None:
    labels = np.stack([make_scene(scene_seed(0, "test", i), SceneSettings())[2] for i in range(24)]) > 0
    assert 0.02 < labels.mean() < 0.15
    assert labels.mean((1, 2)).max() < 0.5


def test_the_share_of_unchanged_pairs_is_the_one_asked_for() -> None:
    settings = SceneSettings(size=32, unchanged=0.5, buildings=(16, 40))
    empty = [not make_scene(i, settings)[2].any() for i in range(80)]
    # Binomial, deviation 0.056: four of them.
    assert abs(np.mean(empty) - 0.5) < 0.23


def test_every_other_pair_has_a_change() -> None:
    settings = SceneSettings(size=64, unchanged=0, buildings=(8, 20), appear=0.05, vanish=0.05)
    assert all(make_scene(i, settings)[2].any() for i in range(20))


def test_without_nuisance_and_change_both_dates_are_one_picture() -> None:
    for seed in range(6):
        a, b, label = make_scene(seed, replace(CALM, unchanged=1.0))
        assert a.tobytes() == b.tobytes()
        assert not label.any()


@pytest.mark.parametrize("nuisance", NUISANCES)
def test_a_nuisance_alone_changes_the_pictures_and_not_the_label(nuisance: str) -> None:
    # Enough scenes that even a rare nuisance (a repainted roof, a felled tree) shows in one of them.
    settings = SceneSettings(**{"size": 64, "unchanged": 1.0, **OFF, nuisance: 1.0})
    scenes = [make_scene(seed, settings) for seed in range(6)]
    assert any((a != b).any() for a, b, _ in scenes)
    assert not any(label.any() for _, _, label in scenes)


def test_without_nuisance_what_changes_lies_at_the_label() -> None:
    settings = replace(CALM, size=128, unchanged=0.0)
    for seed in range(4):
        a, b, label = make_scene(seed, settings)
        differs = np.abs(a.astype(int) - b).max(2) > 0
        changed = label > 0
        # A building covers whatever was there; the odd pixel may have had the same colour by chance.
        assert differs[changed].mean() > 0.97


def test_the_label_stays_when_date_a_moves() -> None:
    still, moved = replace(CALM, unchanged=0.0), replace(CALM, unchanged=0.0, shift=1.0)
    (a, b, label), (shifted_a, same_b, same_label) = make_scene(3, still), make_scene(3, moved)
    assert b.tobytes() == same_b.tobytes()
    assert label.tobytes() == same_label.tobytes()
    assert a.tobytes() != shifted_a.tobytes()


def test_switching_a_nuisance_off_leaves_the_others_as_they_were() -> None:
    settings = SceneSettings(size=128)
    for seed in range(3):
        with_cars, without = make_scene(seed, settings), make_scene(seed, replace(settings, cars=0.0))
        same = [(x == y).mean() for x, y in zip(with_cars, without, strict=True)]
        assert min(same) > 0.9


def test_appearing_and_vanishing_are_seen_from_the_right_date() -> None:
    settings = replace(CALM, size=128, unchanged=0.0, clustered=0.0, buildings=(6, 9))
    grown = make_scene(5, replace(settings, appear=1.0, vanish=0.0))
    gone = make_scene(5, replace(settings, appear=0.0, vanish=1.0))
    assert grown[2].tobytes() == gone[2].tobytes()
    assert grown[2].any()
    # The date with the buildings is the same picture, whichever date it is.
    assert grown[1].tobytes() == gone[0].tobytes()
    assert grown[0].tobytes() == gone[1].tobytes()


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 16},
        {"buildings": (5, 2)},
        {"unchanged": 1.5},
        {"shift": -0.1},
        {"cars": float("nan")},
        {"appear": 0.7, "vanish": 0.5},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        SceneSettings(**wrong)


def test_no_two_pictures_share_a_seed() -> None:
    seeds = {scene_seed(seed, split, i) for seed in range(3) for split in SPLITS for i in range(200)}
    assert len(seeds) == 3 * 3 * 200


# --- the folder ------------------------------------------------------------


def _write(root: Path, **changes: Any) -> Path:
    return write_demo(root, **({"train": 3, "val": 1, "test": 2, "size": 32} | changes))


def _state(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(root)): (p.stat().st_mtime_ns, p.stat().st_ino) for p in root.rglob("*")}


def _pixels(root: Path) -> dict[str, bytes]:
    return {
        p.relative_to(root).as_posix(): np.asarray(Image.open(p)).tobytes()
        for p in sorted(root.rglob("*.png"))
    }


def test_the_folder_has_the_layout_of_levir_cd(tmp_path: Path) -> None:
    root = _write(tmp_path / "data" / "demo")
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        names = [sorted(p.name for p in (root / split / folder).iterdir()) for folder in ("A", "B", "label")]
        assert names[0] == names[1] == names[2]
        assert len(names[0]) == count
        with (
            Image.open(root / split / "A" / names[0][0]) as a,
            Image.open(root / split / "label" / names[0][0]) as label,
        ):
            assert (a.mode, a.size, label.mode, label.size) == ("RGB", (32, 32), "L", (32, 32))
    assert sorted(p.name for p in root.parent.iterdir()) == ["demo"]


def test_the_same_numbers_give_the_same_pixels_and_splits_differ(tmp_path: Path) -> None:
    first, again, other = (
        _pixels(_write(tmp_path / name, seed=s)) for name, s in (("1", 4), ("2", 4), ("3", 5))
    )
    assert first == again
    pictures = [v for pixels in (first, other) for k, v in pixels.items() if "/A/" in k]
    assert len(set(pictures)) == len(pictures) == 12


def test_writing_twice_writes_once(tmp_path: Path) -> None:
    root = _write(tmp_path / "demo")
    before = _state(root)
    _write(root)
    assert _state(root) == before


def test_other_numbers_or_a_lost_picture_write_anew(tmp_path: Path) -> None:
    root = _write(tmp_path / "demo")
    before = _pixels(root)
    (root / "val" / "A" / "val_0000.png").unlink()
    _write(root)
    assert _pixels(root) == before
    _write(root, train=1)
    assert len(list((root / "train" / "A").iterdir())) == 1
    assert json.loads((root / "demo.json").read_text())["splits"]["train"] == 1


def test_what_others_wrote_is_refused_and_kept(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    mixed = _write(tmp_path / "mixed")
    (mixed / "train" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    for place in (foreign, mixed, tmp_path / "file"):
        with pytest.raises(InputError, match="demo data"):
            _write(place, seed=1)
    assert (foreign / "thesis.txt").read_text() == "years of work"
    assert (mixed / "train" / "notes.txt").read_text() == "mine"


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anban.tasks.change.demo.make_scene", fail)
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken_and_a_count_below_zero_is_not(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    assert (_write(tmp_path / "demo") / "demo.json").exists()
    with pytest.raises(InputError, match="val is -1"):
        _write(tmp_path / "other", val=-1)
