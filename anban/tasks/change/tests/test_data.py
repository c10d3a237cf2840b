"""From files to samples: every layout, every label coding, and seeded defects with their messages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from anban.data.augment import build_augment
from anban.errors import InputError
from anban.recipe.schema import Arguments, bind
from anban.tasks.change.data import ChangeData
from anban.tasks.change.doctor import doctor
from anban.tasks.change.labels import decode_label, sniff_labels
from anban.tasks.change.layouts import Pair, find_layout, find_pairs, list_splits
from anban.tasks.change.transforms import AUGMENT_SECTION

SIDE = 16
FAMILIES = [
    ("A", "B", "label"),
    ("a", "b", "LABEL"),
    ("time1", "time2", "label"),
    ("Image1", "Image2", "label"),
    ("T1", "T2", "GT"),
    ("t1", "t2", "mask"),
    ("A", "B", "OUT"),
    ("im1", "im2", "label"),
]


def mask(seed: int, values: tuple[int, int] = (0, 255), side: int = SIDE) -> np.ndarray:
    """A label with one rectangle of change, never empty."""
    label = np.full((side, side), values[0], dtype=np.uint8)
    top, left = np.random.default_rng(seed).integers(1, side // 2, 2)
    label[top : top + side // 3, left : left + side // 3] = values[1]
    return label


def write(
    folder: Path,
    names: list[str],
    family: tuple[str, str, str] = ("A", "B", "label"),
    values: tuple[int, int] = (0, 255),
    suffixes: tuple[str, str, str] = (".png", ".png", ".png"),
    side: int = SIDE,
) -> Path:
    """Pairs whose pictures depend on folder and name."""
    for sub in family:
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for name in names:
        seed = abs(int.from_bytes(f"{folder.name}/{name}".encode()[-7:]))
        noise = np.random.default_rng(seed)
        for sub, suffix in zip(family[:2], suffixes, strict=False):
            Image.fromarray(noise.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(
                folder / sub / f"{name}{suffix}"
            )
        Image.fromarray(mask(seed, values, side)).save(folder / family[2] / f"{name}{suffixes[2]}")
    return folder


def write_splits(root: Path, **options) -> Path:
    for split, count in {"train": 4, "val": 2, "test": 3}.items():
        write(root / split, [f"{i:02d}" for i in range(count)], **options)
    return root


def write_lists(root: Path, lists: dict[str, list[str]], folder: str = "list") -> Path:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, lines in lists.items():
        (root / folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


# Layouts --------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids="/".join)
def test_folder_families(tmp_path: Path, family: tuple[str, str, str]) -> None:
    write_splits(tmp_path, family=family)
    assert find_layout(tmp_path).kind == "split-folders"
    assert list_splits(tmp_path) == ["train", "val", "test"]
    pairs = find_pairs(tmp_path, "train")
    assert [pair.name for pair in pairs] == ["00.png", "01.png", "02.png", "03.png"]
    assert pairs[1].b == tmp_path / "train" / family[1] / "01.png"
    assert pairs[1].label == tmp_path / "train" / family[2] / "01.png"
    assert pairs[1].size == (SIDE, SIDE)


def test_lists_with_and_without_extension(tmp_path: Path) -> None:
    write(tmp_path, ["x.1", "y", "z"])
    write_lists(tmp_path, {"train": ["z.png", "", "x.1"], "val": ["\ufeffy.png"]})
    (tmp_path / "README.txt").write_text("not a list")
    assert find_layout(tmp_path).kind == "lists"
    assert list_splits(tmp_path) == ["train", "val"]
    assert [pair.name for pair in find_pairs(tmp_path, "train")] == ["x.1.png", "z.png"]
    assert [pair.name for pair in find_pairs(tmp_path, "val", "lists")] == ["y.png"]
    assert len(find_pairs(tmp_path, "all")) == 3


def test_prefix(tmp_path: Path) -> None:
    write(tmp_path, ["train_1", "train_2", "val_1", "test_1"])
    assert list_splits(tmp_path) == ["train", "val", "test"]
    assert find_layout(tmp_path).kind == "prefix"
    assert [pair.name for pair in find_pairs(tmp_path, "train")] == ["train_1.png", "train_2.png"]
    assert len(find_pairs(tmp_path, "all")) == 4


def test_split_folders_with_lists_and_a_split_drawn_from_another(tmp_path: Path) -> None:
    write(tmp_path / "train", ["a", "b", "c"], family=("T1", "T2", "GT"))
    write(tmp_path / "test", ["d"], family=("T1", "T2", "GT"))
    write_lists(tmp_path, {"train_set": ["a", "b"], "val_set": ["c"], "test_set": ["d"]}, folder=".")
    assert find_layout(tmp_path).kind == "split-lists"
    assert [pair.name for pair in find_pairs(tmp_path, "train")] == ["a.png", "b.png"]
    assert find_pairs(tmp_path, "val")[0].a == tmp_path / "train" / "T1" / "c.png"
    assert len(find_pairs(tmp_path, "train", "split-folders")) == 3


def test_partners_may_have_other_extensions_and_strangers_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, ["x"], suffixes=(".jpg", ".tif", ".bmp"))
    (tmp_path / "A" / "Thumbs.db").touch()
    (tmp_path / "A" / "._x.jpg").touch()
    (pair,) = find_pairs(tmp_path, "all")
    assert (pair.a.name, pair.b.name, pair.label and pair.label.name) == ("x.jpg", "x.tif", "x.bmp")


def test_split_names_have_common_aliases_and_may_be_list_files(tmp_path: Path) -> None:
    write(tmp_path / "data" / "Train", ["a"])
    write(tmp_path / "data" / "Validation", ["b"])
    assert list_splits(tmp_path / "data") == ["train", "val"]
    assert find_pairs(tmp_path / "data", "validation")[0].name == "b.png"
    write(tmp_path / "flat", ["p", "q"])
    (tmp_path / "mine.txt").write_text("q\r\n")
    assert [pair.name for pair in find_pairs(tmp_path / "flat", str(tmp_path / "mine.txt"))] == ["q.png"]


def test_prediction_does_not_look_at_labels(tmp_path: Path) -> None:
    write(tmp_path, ["x", "y"])
    (tmp_path / "label" / "y.png").write_text("not a picture")
    shutil.copytree(tmp_path / "label", tmp_path / "GT")
    assert [pair.label for pair in find_pairs(tmp_path, "all", labels=False)] == [None, None]
    with pytest.raises(InputError, match="more than one candidate: label, GT"):
        find_pairs(tmp_path, "all")
    for folder in ("label", "GT"):
        (tmp_path / folder).rename(tmp_path / f"{folder}1".lower())
    (tmp_path / "gt1").rename(tmp_path / "label2")  # semantic labels
    assert [pair.name for pair in find_pairs(tmp_path, "all", labels=False)] == ["x.png", "y.png"]


# Seeded defects --------------------------------
# Each takes a sound data set of split folders, breaks it, and says what the one message has to contain.


def missing_b(root: Path) -> None:
    (root / "train/B/02.png").unlink()


def missing_label(root: Path) -> None:
    (root / "val/label/01.png").unlink()


def label_without_pictures(root: Path) -> None:
    shutil.copy(root / "test/label/00.png", root / "test/label/99.png")


def other_size(root: Path) -> None:
    Image.new("RGB", (SIDE, SIDE + 4)).save(root / "train/B/01.png")


def other_label_size(root: Path) -> None:
    Image.new("L", (SIDE // 2, SIDE // 2)).save(root / "train/label/03.png")


def empty_split(root: Path) -> None:
    for sub in ("A", "B", "label"):
        shutil.rmtree(root / "val" / sub)
        (root / "val" / sub).mkdir()


def truncated(root: Path) -> None:
    path = root / "train/A/01.png"
    path.write_bytes(path.read_bytes()[:-300])


def truncated_label(root: Path) -> None:
    path = root / "test/label/01.png"
    path.write_bytes(path.read_bytes()[:-30])


def not_a_picture(root: Path) -> None:
    (root / "test/B/02.png").write_text("version https://git-lfs.github.com/spec/v1")


def sixteen_bits(root: Path) -> None:
    Image.fromarray(np.zeros((SIDE, SIDE), dtype=np.uint16)).save(root / "train/A/00.png")


def sixteen_bit_label(root: Path) -> None:
    Image.fromarray(np.zeros((SIDE, SIDE), dtype=np.uint16)).save(root / "train/label/00.png")


def four_channels(root: Path) -> None:
    Image.new("RGBA", (SIDE, SIDE)).save(root / "val/B/00.png")


def rgb_label(root: Path) -> None:
    Image.open(root / "val/label/00.png").convert("RGB").save(root / "val/label/00.png")


def list_names_missing(root: Path) -> None:
    write_lists(root, {"train": ["00", "77.png"], "val": ["00"], "test": ["00"]})


def list_empty(root: Path) -> None:
    write_lists(root, {"train": ["", "  "]})


def list_repeats(root: Path) -> None:
    write_lists(root, {"train": ["00", "01", "00.png"]})


def two_lists(root: Path) -> None:
    write_lists(root, {"train": ["00"], "train_set": ["01"]})


def same_stem_twice(root: Path) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(root / "train/A/00.jpg")


def no_label_folder(root: Path) -> None:
    shutil.rmtree(root / "train/label")


def no_val(root: Path) -> None:
    shutil.rmtree(root / "val")


def nothing_known(root: Path) -> None:
    for split in ("train", "val", "test"):
        (root / split / "A").rename(root / split / "before")


def semantic(root: Path) -> None:
    for split in ("train", "val", "test"):
        (root / split / "label").rename(root / split / "label1")
        shutil.copytree(root / split / "label1", root / split / "label2")


def two_families(root: Path) -> None:
    (root / "train/T1").mkdir()
    (root / "train/T2").mkdir()


def leak(root: Path) -> None:
    for sub in ("A", "B", "label"):
        shutil.copy(root / "train" / sub / "01.png", root / "test" / sub / "50.png")


def no_change(root: Path) -> None:
    for path in (root / "test/label").iterdir():
        Image.new("L", (SIDE, SIDE)).save(path)


def class_labels(root: Path) -> None:
    label = mask(0)
    label[0, :4] = [0, 1, 2, 3]
    label[label == 255] = 3
    Image.fromarray(label).save(root / "train/label/00.png")


def half_scale(root: Path) -> None:
    for path in (root / "train/label").iterdir():
        Image.fromarray(mask(0, (0, 128))).save(path)


def ignored_value(root: Path) -> None:
    for path in (root / "train/label").iterdir():
        label = mask(0, (0, 1))
        label[0] = 255
        Image.fromarray(label).save(path)


def mixed_codings(root: Path) -> None:
    Image.fromarray(mask(0, (0, 1))).save(root / "train/label/02.png")


def coding_differs_between_splits(root: Path) -> None:
    for path in (root / "val/label").iterdir():
        Image.fromarray(mask(0, (0, 1))).save(path)


DEFECTS: list[tuple[Callable[[Path], None], list[str]]] = [
    (missing_b, ["train/B", "02.png", "1 of 4", "A 4, B 3, label 4"]),
    (missing_label, ["val/label", "01.png", "A 2, B 2, label 1"]),
    (label_without_pictures, ["test/A", "99.png", "A 3, B 3, label 4"]),
    (other_size, ["train/A/01.png", "16x16", "16x20", "B/01.png"]),
    (other_label_size, ["label/03.png", "8x8"]),
    (empty_split, ["'val' holds no pictures", "val"]),
    (truncated, ["train/A/01.png", "truncated"]),
    (truncated_label, ["test/label/01.png", "truncated"]),
    (not_a_picture, ["test/B/02.png", "not a picture"]),
    (sixteen_bits, ["train/A/00.png", "16-bit picture"]),
    (sixteen_bit_label, ["train/label/00.png", "16-bit label"]),
    (four_channels, ["val/B/00.png", "4 channels"]),
    (rgb_label, ["val/label/00.png", "3 channels", "convert('L')"]),
    (list_names_missing, ["list/train.txt", "'77'", "1 of 2"]),
    (list_empty, ["list/train.txt", "empty"]),
    (list_repeats, ["list/train.txt", "duplicated", "00"]),
    (two_lists, ["two lists", "train.txt", "train_set.txt"]),
    (same_stem_twice, ["train/A", "duplicated", "00.jpg", "00.png"]),
    (no_label_folder, ["no label folder", "train"]),
    (no_val, ["no split 'val'", "train, test", "data.val"]),
    (nothing_known, ["no known layout", "test, train, val"]),
    (semantic, ["semantic", "label1", "SECOND"]),
    (two_families, ["A/B, T1/T2", "train"]),
    (leak, ["train and test share 1", "50.png"]),
    (no_change, ["no change in any of the 3", "test/label"]),
    (class_labels, ["not understood", "train/label", "0, 1, 2, 3"]),
    (half_scale, ["not understood", "0, 128", "train/label"]),
    (ignored_value, ["255 may be change", "0, 1, 255", "train/label"]),
    (mixed_codings, ["two codings", "02.png", "train/label"]),
    (coding_differs_between_splits, ["train 0/255, val 0/1"]),
]


@pytest.mark.parametrize(("seed_defect", "fragments"), DEFECTS, ids=lambda x: getattr(x, "__name__", ""))
def test_seeded_defect_is_refused_before_training(
    tmp_path: Path, seed_defect: Callable[[Path], None], fragments: list[str]
) -> None:
    seed_defect(write_splits(tmp_path))
    with pytest.raises(InputError) as caught:
        ChangeData(str(tmp_path)).check()
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(("seed_defect", "fragments"), DEFECTS, ids=lambda x: getattr(x, "__name__", ""))
def test_doctor_reports_the_same_defects(
    tmp_path: Path, seed_defect: Callable[[Path], None], fragments: list[str]
) -> None:
    seed_defect(write_splits(tmp_path))
    report = doctor(tmp_path)
    level = "warning" if seed_defect is no_val else "error"
    texts = [f"{f['what']} {f['where']}" for f in report["findings"] if f["level"] == level]
    keyword = "'train' and 'test' share 1" if seed_defect is leak else fragments[0]
    assert any(keyword in text for text in texts), texts
    assert report["ok"] == (seed_defect is no_val)


def test_sound_data_pass(tmp_path: Path) -> None:
    """The control of the table above: without its defect the same data are accepted."""
    write_splits(tmp_path)
    assert ChangeData(str(tmp_path)).check()["splits"] == {"train": 4, "val": 2, "test": 3}
    report = doctor(tmp_path)
    assert report["ok"]
    assert report["findings"] == []


def test_root_and_layout_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)does not exist.*nowhere.*data.root"):
        find_pairs(tmp_path / "nowhere", "train")
    write_splits(tmp_path / "LEVIR")
    with pytest.raises(InputError, match=r"(?s)folders found: LEVIR.*set the root to .*LEVIR"):
        find_pairs(tmp_path, "train")
    with pytest.raises(InputError, match="laid out as 'split-folders', not 'lists'"):
        find_pairs(tmp_path / "LEVIR", "train", "lists")
    with pytest.raises(InputError, match=r"(?s)no such list file.*none.txt"):
        find_pairs(tmp_path / "LEVIR", "none.txt")


def test_flat_folder_without_splits_says_so(tmp_path: Path) -> None:
    write(tmp_path, ["train_1", "x"])
    assert list_splits(tmp_path) == ["all"]
    with pytest.raises(InputError, match=r"(?s)no splits; 1 of 2 names.*'x'.*'all'.*list/train.txt"):
        find_pairs(tmp_path, "train")


# Labels --------------------------------


def labelled(folder: Path, labels: list[np.ndarray], suffix: str = ".png") -> list[Pair]:
    pairs = []
    for number, label in enumerate(labels):
        path = folder / f"{number}{suffix}"
        Image.fromarray(label).save(path)
        pairs.append(Pair(path.name, (path, path), path))
    return pairs


@pytest.mark.parametrize(("values", "coding"), [((0, 1), "0/1"), ((0, 255), "0/255"), ((0, 254), "0/255")])
def test_codings(tmp_path: Path, values: tuple[int, int], coding: str) -> None:
    pairs = labelled(tmp_path, [mask(0, values), np.zeros((SIDE, SIDE), np.uint8)])
    report = sniff_labels(pairs)
    assert report.coding == coding
    assert report.values == {0: 2 * SIDE**2 - 25, values[1]: 25}
    assert report.foreground == 25 / (2 * SIDE**2)
    assert report.empty == ("1.png",)
    np.testing.assert_array_equal(decode_label(mask(0, values), report.coding), mask(0, (0, 1)))


def test_a_few_values_next_to_the_ends_are_accepted_with_a_warning(tmp_path: Path) -> None:
    label = mask(0)
    label[label == 255] = [254] * 5 + [255] * 20
    report = sniff_labels(labelled(tmp_path, [label]))
    assert (report.coding, report.foreground) == ("0/255", 25 / SIDE**2)
    assert "5 pixels" in report.warnings[0]


def test_soft_jpeg_masks(tmp_path: Path) -> None:
    big = np.zeros((128, 128), np.uint8)
    big[30:90, 40:100] = 255
    report = sniff_labels(labelled(tmp_path, [np.kron(big[::2, ::2], np.ones((2, 2), np.uint8))], ".jpg"))
    assert report.coding in ("soft", "0/255")
    rough = np.asarray(Image.fromarray(big).resize((50, 50)).resize((128, 128)))
    report = sniff_labels(labelled(tmp_path, [rough], ".jpg"))
    assert report.coding == "soft"
    assert "threshold of 128" in report.warnings[0]
    assert report.foreground == pytest.approx(60 * 60 / 128**2, rel=0.05)


def test_grey_jpeg_that_is_no_mask_is_refused(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (64, 1))
    with pytest.raises(InputError, match="not a soft mask"):
        sniff_labels(labelled(tmp_path, [ramp], ".jpg"))


@pytest.mark.parametrize(
    ("values", "required", "found"),
    [
        ((0, 255), "0/1", "not coded 0/1; values seen: 0, 255"),
        ((0, 1), "0/255", "coded 0/1, not 0/255; values seen: 0, 1"),
    ],
)
def test_a_coding_asked_for_is_insisted_on(
    tmp_path: Path, values: tuple[int, int], required: str, found: str
) -> None:
    with pytest.raises(InputError, match=found):
        sniff_labels(labelled(tmp_path, [mask(0, values)]), required)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values", [(0, 1, 2, 3), (0, 1, 255), (0, 1, 2, 3, 255), (0, 128), (0, 85, 170, 255), (0, 2)]
)
def test_codings_that_could_be_two_things_are_refused(tmp_path: Path, values: tuple[int, ...]) -> None:
    label = np.resize(np.array(values, np.uint8), (SIDE, SIDE))
    with pytest.raises(InputError) as caught:
        sniff_labels(labelled(tmp_path, [label]))
    assert f"values seen: {', '.join(map(str, values))}" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_single_odd_one_among_255_is_still_refused(tmp_path: Path) -> None:
    label = np.kron(mask(0), np.ones((4, 4), np.uint8))
    label[0, 0] = 1
    with pytest.raises(InputError, match="255 may be change"):
        sniff_labels(labelled(tmp_path, [label]))


def test_inverted_and_rare_change_are_warned_of(tmp_path: Path) -> None:
    assert any("inverted" in w for w in sniff_labels(labelled(tmp_path, [255 - mask(0)])).warnings)
    rare = np.zeros((64, 64), np.uint8)
    rare[5, 5] = 255
    assert any("0.024%" in w for w in sniff_labels(labelled(tmp_path, [rare])).warnings)


def test_no_labels_at_all() -> None:
    with pytest.raises(InputError, match="no labels"):
        sniff_labels([])


# ChangeData --------------------------------


def test_check_reports_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_splits(tmp_path / "set", values=(0, 1))
    monkeypatch.chdir(tmp_path)
    report = ChangeData("set").check()
    assert report["root"] == str(tmp_path / "set")
    assert (report["layout"], report["labels"]) == ("split-folders", "0/1")
    assert report["foreground"]["train"] == 25 / SIDE**2
    assert report["sizes"]["val"] == f"{SIDE}x{SIDE}"
    assert len(report["fingerprint"]) == 12
    assert int(report["fingerprint"], 16) >= 0


def test_fingerprint_follows_the_data_and_not_the_place(tmp_path: Path) -> None:
    write_splits(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first = ChangeData(str(tmp_path / "one")).fingerprint
    assert ChangeData(str(tmp_path / "two")).fingerprint == first
    assert ChangeData(str(tmp_path / "two"), limit=2).fingerprint != first
    path = tmp_path / "two/test/label/00.png"
    Image.fromarray(255 - np.array(Image.open(path))).save(path)
    assert ChangeData(str(tmp_path / "two")).fingerprint != first


def test_overlap_may_be_meant(tmp_path: Path) -> None:
    write_splits(tmp_path)
    with pytest.raises(InputError, match="val and test share 3"):
        ChangeData(str(tmp_path), val="test").check()
    report = ChangeData(str(tmp_path), val="test", overlap="warn").check()
    assert any("val and test share 3" in warning for warning in report["warnings"])


def test_roles_limit_and_bad_options(tmp_path: Path) -> None:
    write_splits(tmp_path)
    data = ChangeData(str(tmp_path), train="train", val=None, test="val", limit=2)
    assert [pair.name for pair in data.scenes("train")] == ["00.png", "02.png"]
    assert data.check()["splits"] == {"train": 2, "test": 2}
    with pytest.raises(InputError, match=r"data\.tile_overlap"):
        ChangeData(str(tmp_path), tile=8, tile_overlap=8)
    section = {"data": Arguments("anban.tasks.change.data:ChangeData")}
    with pytest.raises(InputError, match=r"(?s)data\.std\.2.*above 0"):
        bind(section, {"data": {"root": "x", "std": [1, 1, 0]}})
    with pytest.raises(InputError, match=r"(?s)'val' is left out: data\.val is null.*train, test"):
        data.scenes("val")


@pytest.mark.parametrize("cache", [True, False])
def test_sample_is_what_lies_on_disk(tmp_path: Path, cache: bool) -> None:
    write_splits(tmp_path)
    data = ChangeData(str(tmp_path), mean=(0.5, 0.25, 0), std=(0.5, 1, 2), cache=cache)
    sample = data.dataset("test", build_augment({"flip": {"horizontal": 1.0}}, AUGMENT_SECTION))[1]
    raw = np.array(Image.open(tmp_path / "test/B/01.png")).transpose(2, 0, 1) / 255
    expected = (raw - np.array([0.5, 0.25, 0])[:, None, None]) / np.array([0.5, 1, 2])[:, None, None]
    np.testing.assert_allclose(sample["b"].numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(
        sample["label"].numpy(), np.array(Image.open(tmp_path / "test/label/01.png")) // 255
    )
    assert (sample["a"].dtype, sample["label"].dtype, sample["name"]) == (
        torch.float32,
        torch.uint8,
        "01.png",
    )
    assert type(sample["a"]) is type(sample["label"]) is torch.Tensor


def test_training_tiles(tmp_path: Path) -> None:
    write_splits(tmp_path, side=24)
    data = ChangeData(str(tmp_path), tile=16, tile_overlap=4)
    tiles, whole = data.dataset("train", tiled=True), data.dataset("train")
    assert (len(tiles), len(whole), len(data.dataset("test"))) == (4 * 4, 4, 3)
    assert tiles[3]["name"] == "00.png@8,8"
    torch.testing.assert_close(tiles[3]["a"], whole[0]["a"][:, 8:, 8:])
    torch.testing.assert_close(tiles[3]["label"], whole[0]["label"][8:, 8:])
    small = ChangeData(str(tmp_path), tile=30).dataset("train", tiled=True)
    assert small[0]["a"].shape == (3, 30, 30)


EVERYTHING = {
    "scale": {"ratio": [0.8, 1.3]},
    "crop": {"size": 12, "keep_change": True},
    "flip": {},
    "rotate90": {},
    "swap": {},
    "photometric": {"hue": 0.1},
    "blur": {},
    "erase": {},
    "shift": {},
}


def samples(data: ChangeData, epoch: int, workers: int, seed: int = 0) -> list[dict]:
    dataset = data.dataset("train", build_augment(EVERYTHING, AUGMENT_SECTION), seed=seed)
    keys = [(epoch, index) for index in range(len(dataset))]
    context = "fork" if workers else None
    loader = DataLoader(
        dataset, batch_size=2, sampler=keys, num_workers=workers, multiprocessing_context=context
    )
    return list(loader)


def test_same_samples_from_any_number_of_workers_and_other_ones_each_epoch(tmp_path: Path) -> None:
    write_splits(tmp_path)
    data = ChangeData(str(tmp_path))
    torch.manual_seed(1)
    here = samples(data, epoch=3, workers=0)
    torch.manual_seed(2)
    for first, second in zip(here, samples(data, epoch=3, workers=2), strict=True):
        assert first["name"] == second["name"]
        for key in ("a", "b", "label"):
            assert torch.equal(first[key], second[key])
    uncached = samples(ChangeData(str(tmp_path), cache=False), epoch=3, workers=0)
    assert torch.equal(here[1]["a"], uncached[1]["a"])
    assert not torch.equal(here[0]["a"], samples(data, epoch=4, workers=0)[0]["a"])
    assert not torch.equal(here[0]["a"], samples(data, epoch=3, workers=0, seed=1)[0]["a"])


def test_augmentation_leaves_the_cache_and_the_outside_generators_alone(tmp_path: Path) -> None:
    write_splits(tmp_path)
    dataset = ChangeData(str(tmp_path), cache=True).dataset(
        "train", build_augment(EVERYTHING, AUGMENT_SECTION)
    )
    before = dataset[0]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for epoch in range(10):
        augmented = dataset[epoch, 0]
        augmented["label"].fill_(7)
    dataset[0]["label"].fill_(7)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(dataset[0]["a"], before["a"])
    assert int(dataset[0]["label"].max()) == 1


def test_reading_ends_where_the_data_end(tmp_path: Path) -> None:
    write_splits(tmp_path)
    assert [sample["name"] for sample in ChangeData(str(tmp_path)).dataset("val")] == ["00.png", "01.png"]


def test_file_damaged_after_the_check_is_named(tmp_path: Path) -> None:
    write_splits(tmp_path)
    dataset = ChangeData(str(tmp_path), cache=False).dataset("train")
    (tmp_path / "train/A/02.png").write_bytes(b"gone")
    with pytest.raises(InputError, match=r"A/02\.png"):
        dataset[2]


def test_cached_pictures_travel_in_one_tensor_whatever_their_sizes(tmp_path: Path) -> None:
    for name, side in (("x", 16), ("y", 24), ("z", 9)):
        write(tmp_path / "all", [name], side=side)
    data, uncached = (
        ChangeData(str(tmp_path), train=None, val=None, test="all", cache=cache).dataset("test")
        for cache in (True, False)
    )
    pickled = [x for x in vars(data._pictures).values() if isinstance(x, torch.Tensor)]
    assert [x.numel() for x in pickled] == [7 * (16**2 + 24**2 + 9**2)]
    for mine, read in zip(data, uncached, strict=True):
        assert all(torch.equal(mine[key], read[key]) for key in ("a", "b", "label"))


def test_picture_that_changed_its_size_is_not_cached(tmp_path: Path) -> None:
    write_splits(tmp_path)
    data = ChangeData(str(tmp_path), cache=True)
    data.label_report("val")
    Image.new("RGB", (SIDE, 1)).save(tmp_path / "val/B/00.png")
    with pytest.raises(InputError, match=r"(?s)1x16 pixels, 16x16 before.*val/A/00\.png"):
        data.dataset("val")


# Doctor --------------------------------


def test_doctor_lists_several_defects_at_once_and_offers_a_recipe_section(tmp_path: Path) -> None:
    write_splits(tmp_path)
    for defect in (missing_b, truncated, four_channels, leak):
        defect(tmp_path)
    report = doctor(tmp_path)
    errors = [finding["what"] for finding in report["findings"] if finding["level"] == "error"]
    for fragment in ("missing partners in B", "truncated", "4 channels"):
        assert any(fragment in what for what in errors), errors
    assert report["splits"]["train"]["pairs"] == 2
    assert report["data"]["layout"] == "split-folders"
    assert report["data"]["labels"] == "0/255"
    assert not report["ok"]


def test_doctor_finds_damage_inside_a_file_that_ends_well(tmp_path: Path) -> None:
    write_splits(tmp_path)
    path = tmp_path / "val/A/01.png"
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(bytes(data))
    errors = [
        str(finding["where"]) for finding in doctor(tmp_path)["findings"] if finding["level"] == "error"
    ]
    assert str(path) in errors


def test_doctor_of_a_flat_folder_and_of_none(tmp_path: Path) -> None:
    write(tmp_path / "set", ["x", "y"])
    report = doctor(tmp_path / "set")
    assert report["ok"]
    assert any("no splits" in finding["what"] for finding in report["findings"])
    assert ChangeData(**report["data"]).check()["splits"] == {"test": 2}
    report = doctor(tmp_path / "nowhere")
    assert not report["ok"]
    assert report["data"] is None
    assert len(report["findings"]) == 1


# Real pairs --------------------------------

REAL = Path(os.environ.get("ANBAN_DATA", "/nonexistent")) / "change"


@pytest.mark.skipif(not REAL.is_dir(), reason="ANBAN_DATA is not set: the real pairs are left out")
def test_real_pairs() -> None:
    report = ChangeData(str(REAL / "levir_cd_256")).check()
    assert report["splits"] == {"train": 37, "val": 14, "test": 12}
    assert (report["layout"], report["labels"]) == ("lists", "0/255")
    assert sum(report["unchanged"].values()) == 9
    assert any("35 pixels" in warning for warning in report["warnings"])
    with pytest.raises(InputError, match=r"(?s)no splits.*dsifn_256"):
        ChangeData(str(REAL / "dsifn_256")).check()
    assert len(find_pairs(REAL / "dsifn_256", "all")) == 6
    assert doctor(REAL / "levir_cd_256")["ok"]
