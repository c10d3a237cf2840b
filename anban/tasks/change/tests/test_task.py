"""The change task as the loop and the command line use it, on data of a few pixels."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anban.errors import InputError
from anban.recipe import differences, load_recipe
from anban.recipe.yamlfile import parse
from anban.tasks.change.debug import debug
from anban.tasks.change.task import ChangeTask, Evaluation

SIDE = 16
RECIPE = "change/demo-fc-siam-diff"


class Difference(nn.Module):
    """Its parameter multiplies the difference of the dates; it keeps what it was given."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.seen: list[torch.dtype] = []

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        mixed = nn.functional.conv2d(b - a, self.factor.expand(1, 3, 1, 1))
        self.seen.append(mixed.dtype)
        return mixed


def write(folder: Path, count: int, sides: tuple[int, ...] = (SIDE,)) -> Path:
    for sub in ("A", "B", "label"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(folder)) + sum(folder.name.encode()))
    for number in range(count):
        side = sides[number % len(sides)]
        for sub in ("A", "B"):
            Image.fromarray(noise.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(
                folder / sub / f"{number}.png"
            )
        label = np.zeros((side, side), np.uint8)
        label[:4, :5] = 255
        Image.fromarray(label).save(folder / "label" / f"{number}.png")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in {"train": 3, "val": 1, "test": 2}.items():
        write(tmp_path / "set" / split, count)
    return tmp_path / "set"


def make(root: Path, *overrides: str) -> ChangeTask:
    config = load_recipe(RECIPE, [f"data.root={root}", "augment.crop=null", "eval.splits=[test]", *overrides])
    return ChangeTask(config.config)


# Data --------------------------------


def test_many_cached_pairs_reach_a_fresh_worker_process(tmp_path: Path) -> None:
    write(tmp_path / "train", 120)
    task = make(tmp_path, "data.cache=true", "data.val=null", "data.test=null")
    assert pickle.loads(pickle.dumps(task.collate)) is task.collate
    keys = [(0, index) for index in range(120)]
    loader: DataLoader[Any] = DataLoader(
        task.training_data(),
        sampler=keys,
        batch_size=60,
        num_workers=1,
        collate_fn=task.collate,
        multiprocessing_context="forkserver",
    )
    first, second = loader
    here = task.collate([task.training_data()[0, 119]])
    assert (len(first["name"]), second["name"][-1]) == (60, here["name"][0])
    assert torch.equal(second["a"][-1], here["a"][0])


def test_tiles_are_for_training_and_not_for_a_score_on_the_training_split(root: Path) -> None:
    task = make(root, "data.tile=8")
    assert len(task.training_data()) == 3 * 4  # type: ignore[arg-type]
    scored = task.evaluation_data("train")
    assert [tuple(scored[i]["label"].shape) for i in range(3)] == [(SIDE, SIDE)] * 3


def test_a_role_that_is_null_is_left_out(root: Path) -> None:
    task = make(root, "data.val=null")
    assert [task.has_split(split) for split in ("train", "val", "test", "other")] == [True, False, True, True]
    assert task.check_data()["splits"] == {"train": 3, "test": 2}
    with pytest.raises(InputError, match=r"data\.val is null"):
        task.evaluation_data("val")


def test_splits_to_be_evaluated_are_looked_at_before_training(root: Path) -> None:
    write(root / "extra", 1)
    make(root, "eval.splits=[test, train, extra]").check_data()
    with pytest.raises(InputError, match=r"(?s)'tset'.*eval\.splits.*extra, test, train, val.*'test'"):
        make(root, "eval.splits=[train, tset]").check_data()
    with pytest.raises(InputError, match=r"(?s)data\.test is null.*eval\.splits"):
        make(root, "data.test=null").check_data()
    Image.new("L", (SIDE, SIDE), 7).save(root / "extra/label/0.png")
    with pytest.raises(InputError, match=r"(?s)values seen: 7.*extra/label"):
        make(root, "eval.splits=[extra]").check_data()


def test_training_scenes_of_several_sizes_need_a_crop_or_tiles(root: Path) -> None:
    write(root / "train", 2, sides=(SIDE, 24))
    with pytest.raises(InputError, match=r"(?s)16x16, 24x24.*augment\.crop\.size or data\.tile"):
        make(root).check_data()
    for override in ("augment.crop.size=8", "augment.resize.size=8", "data.tile=8", "data.train=null"):
        make(root, override).check_data()


def test_debug_data_may_lie_anywhere(tmp_path: Path) -> None:
    folder = tmp_path / "a: b #1, {x}"
    config = load_recipe(RECIPE, ["eval.splits=[all, test, train]"]).config
    given = dict(text.split("=", 1) for text in debug(config, folder))
    assert parse(given["data.root"], "data.root") == str(folder / "change")
    assert parse(given["eval.splits"], "eval.splits") == ["test", "train"]


def test_the_debug_size_is_small_and_keeps_the_structure(tmp_path: Path) -> None:
    protocols = "eval.protocols=[whole, tiles-256+flip, sliding]"
    full = load_recipe("change/v10", [protocols]).config
    small = load_recipe("change/v10", debug(full, tmp_path))
    changed = {
        key: new for key, (_, new) in differences(full, small.config).items() if key.startswith("model.")
    }
    assert changed == {"model.dims": 8, "model.depths": [2, 2, 2, 2]}
    assert small.config["eval"]["protocols"] == ["whole", "tiles-64+flip", "sliding-64-32"]
    assert small.config["machine"]["workers"] == 0


# Evaluation --------------------------------


def test_a_protocol_is_not_given_twice_under_two_names() -> None:
    assert Evaluation(protocols=["sliding", "sliding-256-64"]).protocols == ["sliding", "sliding-256-64"]
    with pytest.raises(InputError, match=r"(?s)'sliding' and 'sliding-256-128'.*eval\.protocols"):
        Evaluation(protocols=["sliding", "whole", "sliding-256-128"])


def test_a_network_that_gives_nan_is_refused_by_sample(root: Path, tmp_path: Path) -> None:
    task, data = make(root), make(root).evaluation_data("test")
    batch = task.collate([data[0], data[1]])
    batch["b"][1, 0, 0, 0] = float("nan")
    with pytest.raises(RuntimeError, match=r"the network gives NaN for 1\.png"):
        task.evaluate(Difference(), batch, "whole")
    with pytest.raises(RuntimeError, match=r"the network gives NaN for 0\.png"):
        next(task.predict(Difference(float("nan")), [root / "test"], tmp_path, "whole", torch.device("cpu")))


# Prediction --------------------------------


def predict(task: ChangeTask, model: nn.Module, inputs: list[Path], out: Path) -> list[str]:
    made = task.predict(model, inputs, out, "whole", torch.device("cpu"))
    return [path.relative_to(out).as_posix() for path in made]


def test_a_map_is_what_an_evaluation_sees(root: Path, tmp_path: Path) -> None:
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        task = make(root, f"train.precision={precision}")
        model = Difference()
        predict(task, model, [root / "test"], tmp_path / "out")
        assert model.seen == [dtype] * 2
        batch = task.collate([task.evaluation_data("test")[1]])
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=precision != "fp32"):
            ((_, expected),) = task.evaluate(model, batch, "whole")
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / "out/1_probability.png")), expected)


def test_maps_of_several_folders_do_not_overwrite_each_other(root: Path, tmp_path: Path) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(root / "val/label/0.png")  # no label that could be used
    task, out = make(root), tmp_path / "out"
    assert predict(task, Difference(), [root / "val"], out) == ["0.png", "0_probability.png"]
    made = predict(task, Difference(), [root / "test", root / "val"], out)
    assert [name for name in made if "_" not in name] == ["test/0.png", "test/1.png", "val/0.png"]
    write(tmp_path / "other/val", 1)
    with pytest.raises(InputError, match="Several folders are called 'val'"):
        predict(task, Difference(), [root / "val", tmp_path / "other/val"], out)


def test_two_files_may_have_different_extensions(root: Path, tmp_path: Path) -> None:
    Image.open(root / "test/A/0.png").save(tmp_path / "before.tif")
    Image.open(root / "test/B/0.png").save(tmp_path / "after.bmp")
    out = tmp_path / "out"
    made = predict(make(root), Difference(), [tmp_path / "before.tif", tmp_path / "after.bmp"], out)
    assert made == ["after.png", "after_probability.png"]
    predict(make(root), Difference(), [root / "test"], out)
    assert (out / "after.png").read_bytes() == (out / "0.png").read_bytes()


# Health ------------------------------


def test_next_to_no_change_is_a_collapse_as_well(root: Path) -> None:
    """4000 pixels are changed; from 4 of them on, predicted anywhere, the network answers with both classes."""
    task = make(root)

    def told(tn: int, fp: int, fn: int, tp: int) -> list[str]:
        counts = {"tn": tn, "fp": fp, "fn": fn, "tp": tp}
        return [f"{symptom.kind}: {symptom.what}" for symptom in task.health([{"counts": counts}])]

    assert told(96_000, 0, 4000, 0) == [
        "collapse: no pixel is predicted as change, though 4000 of 100000 are"
    ]
    (almost,) = told(95_999, 1, 3998, 2)
    assert almost == "collapse: only 3 of all pixels are predicted as change, though 4000 of 100000 are"
    assert told(95_999, 1, 3997, 3) == []
    (everywhere,) = told(90, 95_910, 5, 3995)
    assert everywhere == "collapse: all but 95 pixels are predicted as change, though only 4000 of 100000 are"
    assert told(0, 0, 0, 4000) == told(96_000, 0, 0, 0) == []
