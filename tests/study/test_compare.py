"""From run folders on disk to the dict a report is made of."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anban.errors import InputError
from anban.metrics import binary_scores, class_scores
from anban.recipe.recipe import DESCRIPTION
from anban.record import RunFolder
from anban.study.compare import _common_names, _Samples, compare
from anban.study.records import experiment, load_study, runs_as_study

COUNTS = ("tn", "fp", "fn", "tp")
PLACE = {"split": "test", "protocol": "whole", "checkpoint": "best"}
STAMP = {"name": "whole", "split": "test", "size": "16x16", "threshold": 0.5}


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    recipe: str = "change/tiny",
    quality: float = 0.8,
    images: int = 12,
    **changes: Any,
) -> Path:
    """A run folder with records of invented counts; `changes` replace keys of run.json."""
    rng = np.random.default_rng((seed, round(quality * 100)))
    folder.mkdir(parents=True)
    info = {
        "format": "anban-run/1", "id": folder.name, "recipe": recipe, "title": recipe.title(), "task": "change",
        "hash": recipe[-6:], "base": None, "difference": {}, "state": "finished", "why": None, "seed": seed,
        "data": {"root": "d", "fingerprint": "abc"}, "protocols": {"test/whole": STAMP},
        "scores": [{**PLACE, "name": "f1", "value": quality}],
        "progress": {"best": {"name": "f1"}},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps({**info, **changes}))
    lines = []
    for index in rng.permutation(images):  # the order in the file must not matter
        change = 20 + 5 * int(index)
        tp = int(rng.binomial(change, quality))
        cells = dict(zip(COUNTS, (250 - change, 6, change - tp, tp), strict=True))
        scores = {
            "f1": float(binary_scores(list(cells.values()))["f1"]),
            "sharpness": float(index),
            "rmse": 1 - quality,
        }
        lines.append({**PLACE, "name": f"{index}.png", "counts": cells, "scores": scores})
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_study(root: Path, arms: dict[str, list[Path]], **changes: Any) -> Path:
    folder = root / "studies" / "one"
    folder.mkdir(parents=True)

    def entry(path: Path) -> dict[str, Any]:
        seed = json.loads((path / "run.json").read_text())["seed"]
        return {"seed": seed, "path": os.path.relpath(path, folder), "state": "finished", "why": None}

    info = {
        "format": "anban-study/1", "id": "change/one", "title": "One", "question": "Which?", "split": "test",
        "protocol": "whole", "metric": "f1", "base": next(iter(arms)),
        "arms": [
            {"name": name, "title": name.title(), "recipe": f"change/{name}", "difference": {},
             "runs": [entry(path) for path in paths]}
            for name, paths in arms.items()
        ],
    }  # fmt: skip
    (folder / "study.json").write_text(json.dumps({**info, **changes}))
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    arms = {
        "plain": [write_run(tmp_path / f"plain{seed}", seed=seed) for seed in range(3)],
        "good": [write_run(tmp_path / f"good{seed}", seed=seed, quality=0.95) for seed in range(2)],
        "same": [write_run(tmp_path / f"same{seed}", seed=seed) for seed in range(3)],
    }
    return write_study(tmp_path, arms)


def edit(run: Path, **changes: Any) -> None:
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, **changes}))


def test_compare(study):
    result = compare(load_study(study), resamples=500)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["metric"] == "f1"
    assert result["metrics"][0] == "f1"
    assert "kappa" in result["metrics"]
    assert result["images"] == 12
    assert result["stamp"] == STAMP
    assert not result["mixed"]
    assert not result["left_out"]
    plain, good, same = result["arms"]
    assert plain["is_base"]
    assert not good["is_base"]
    assert [arm["seeds"] for arm in result["arms"]] == [[0, 1, 2], [0, 1], [0, 1, 2]]

    f1 = plain["metrics"]["f1"]
    assert f1["difference"] is None
    assert f1["n"] == 3
    assert f1["higher_is_better"]
    for run, value in zip(plain["runs"], f1["values"], strict=True):
        lines = [
            json.loads(line)["counts"] for line in (Path(run) / "samples.jsonl").read_text().splitlines()
        ]
        tp, wrong = (
            sum(sum(line[cell] for cell in cells) for line in lines) for cells in (("tp",), ("fp", "fn"))
        )
        assert value == pytest.approx(2 * tp / (2 * tp + wrong))
    assert f1["mean"] == pytest.approx(np.mean(f1["values"]))
    assert f1["std"] == pytest.approx(np.std(f1["values"], ddof=1))

    assert result["correction"] == "holm"
    found = good["metrics"]["f1"]["difference"]
    assert found["family"] == 2
    assert found["p_adjusted"] == pytest.approx(2 * found["p"])
    assert found["value"] == pytest.approx(good["metrics"]["f1"]["mean"] - f1["mean"])
    assert found["verdict"] == "better"
    assert found["covers"] == "images and seeds"
    assert found["images"] == 12
    assert found["seeds"] == [2, 3]
    assert 0 < found["low"] < found["value"] < found["high"]
    found = same["metrics"]["f1"]["difference"]
    assert found["value"] == 0
    assert found["verdict"] == "not distinguishable"


def test_verdicts_are_corrected_for_the_number_of_arms(tmp_path):
    arms = {"plain": [write_run(tmp_path / f"plain{seed}", seed=seed) for seed in range(3)]}
    for number in range(6):  # a gain that passes alone, among arms that are the base again
        quality = 0.85 if number == 0 else 0.8
        arms[f"arm{number}"] = [
            write_run(tmp_path / f"arm{number}-{seed}", seed=seed + 10 * number, quality=quality)
            for seed in range(3)
        ]
    study = load_study(write_study(tmp_path, arms))
    together, alone = (compare(study, ["f1"], correction=name, resamples=500) for name in ("holm", "none"))
    one, other = (result["arms"][1]["metrics"]["f1"]["difference"] for result in (together, alone))
    assert (one["low"], one["high"], one["p"]) == (other["low"], other["high"], other["p"])
    assert one["low"] > 0
    assert 0.05 / 6 < one["p"] < 0.05
    assert one["p_adjusted"] == pytest.approx(6 * one["p"])
    assert (one["verdict"], other["verdict"]) == ("not distinguishable", "better")
    assert (one["family"], other["family"]) == (6, 1)


def test_same_numbers_every_time(study):
    assert compare(load_study(study), ["f1"], resamples=200) == compare(
        load_study(study), ["f1"], resamples=200
    )


def test_images_are_in_one_order_in_every_process(study):
    # Names in a set come in another order in the next process, and the resamples would fall on other images.
    one = load_study(study)
    every = [_Samples(run, one) for arm in one.arms for run in arm.runs]
    assert _common_names(every, one) == sorted(f"{index}.png" for index in range(12))


def with_confusion(run: Path, classes: int = 3) -> Path:
    """The run with invented matrices of several classes for its counts."""
    rng = np.random.default_rng(sum(map(ord, run.name)))
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    for line in lines:
        matrix = rng.integers(0, 20, (classes, classes)) + 100 * np.eye(classes, dtype=int)
        line["confusion"] = matrix.tolist()
        del line["counts"]
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    edit(run, select="miou")
    return run


def test_scores_of_several_classes_are_those_of_the_summed_matrices(tmp_path):
    runs = [
        with_confusion(write_run(tmp_path / f"{name}{seed}", seed=seed)) for name in "ab" for seed in (0, 1)
    ]
    study = load_study(write_study(tmp_path, {"a": runs[:2], "b": runs[2:]}, metric=None))
    assert study.metric == "miou"
    result = compare(study, resamples=300)
    assert result["counted"] == "confusion"
    assert result["metrics"] == ["miou", "pixel_acc", "mean_acc", "fwiou", "mf1"]
    lines = [json.loads(line) for line in (runs[2] / "samples.jsonl").read_text().splitlines()]
    expected = class_scores(np.sum([line["confusion"] for line in lines], axis=0))
    found = result["arms"][1]["metrics"]
    assert {name: found[name]["values"][0] for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}
    )
    difference = found["miou"]["difference"]
    assert difference["low"] < difference["value"] < difference["high"]
    # Per-image numbers are there too, and are means.
    assert compare(study, ["rmse"], resamples=300)["arms"][0]["metrics"]["rmse"]["values"] == pytest.approx(
        [0.2, 0.2]
    )


def test_expected_differences_are_a_family_of_their_own(study):
    info = json.loads((study / "study.json").read_text())
    info["arms"][1]["expected"] = {"gain": 2.0, "over": "same", "source": "a paper"}
    (study / "study.json").write_text(json.dumps(info))
    (row,) = compare(load_study(study), resamples=300)["expected"]
    assert (row["arm"], row["over"], row["difference"]["family"]) == ("good", "same", 1)
    assert row["difference"]["p_adjusted"] == row["difference"]["p"]
    assert row["difference"]["value"] > 0.05
    info["arms"][1]["expected"]["over"] = "none"
    (study / "study.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="'none', which is no arm"):
        load_study(study)


def test_pool_takes_in_the_other_arms(study):
    whole, pair = (compare(load_study(study), ["f1"], resamples=200, pool=pool) for pool in ("study", "pair"))
    ends = [result["arms"][1]["metrics"]["f1"]["difference"]["low"] for result in (whole, pair)]
    assert ends[0] != ends[1]


def test_other_scores_are_means_over_images(study):
    result = compare(load_study(study), ["sharpness", "rmse"], resamples=200)
    assert result["metrics"] == ["sharpness", "rmse"]
    _, good, _ = (arm["metrics"] for arm in result["arms"])
    assert good["sharpness"]["values"] == [5.5, 5.5]
    assert good["sharpness"]["higher_is_better"]
    assert good["rmse"]["difference"]["value"] == pytest.approx(-0.15)
    assert not good["rmse"]["higher_is_better"]
    assert good["rmse"]["difference"]["verdict"] == "better"


def test_failed_missing_and_repeated_runs_are_listed(study):
    root = study.parents[1]
    edit(root / "good0", state="failed", why="out of memory")
    shutil.rmtree(root / "same1")
    (root / "same2" / "samples.jsonl").unlink()
    edit(root / "plain1", seed=0)
    edit(root / "plain2", seed=0)
    info = json.loads((study / "study.json").read_text())
    info["arms"][0]["runs"][1]["seed"] = info["arms"][0]["runs"][2]["seed"] = 0
    info["arms"][1]["runs"].append({"seed": 7, "path": None, "state": "waiting", "why": None})
    (study / "study.json").write_text(json.dumps(info))

    result = compare(load_study(study), ["f1"], resamples=200)
    listed = {(entry["arm"], entry["seed"]): (entry["state"], entry["why"]) for entry in result["left_out"]}
    assert listed[("good", 0)] == ("failed", "out of memory")
    assert listed[("good", 7)] == ("waiting", "it was never started")
    assert listed[("same", 1)][0] == "missing"
    assert "run.json" in listed[("same", 1)][1]
    assert listed[("same", 2)] == ("unused", "not evaluated on 'test' under protocol 'whole'")
    assert listed[("plain", 0)] == ("unused", "a later run has seed 0 too")
    assert len(listed) == 5
    assert [Path(entry["path"]).name for entry in result["left_out"]][:2] == ["plain0", "plain1"]
    assert [arm["n"] for arm in result["arms"]] == [1, 1, 1]
    assert result["arms"][1]["metrics"]["f1"]["std"] is None
    assert Path(result["arms"][0]["runs"][0]).name == "plain2"


def test_single_runs_cover_images_only(tmp_path):
    arms = {
        name: [write_run(tmp_path / name, quality=quality)] for name, quality in (("one", 0.7), ("two", 0.8))
    }
    result = compare(load_study(write_study(tmp_path, arms)), ["f1"], resamples=200)
    assert result["arms"][1]["metrics"]["f1"]["difference"]["covers"] == "images"


def test_base_without_runs(study):
    for seed in range(3):
        edit(study.parents[1] / f"plain{seed}", state="interrupted")
    result = compare(load_study(study), ["f1"], resamples=200)
    base, good, _ = (arm["metrics"]["f1"] for arm in result["arms"])
    assert base["values"] == []
    assert base["mean"] is None
    assert good["mean"] is not None
    assert good["difference"] is None


def test_nothing_finished_is_still_a_result(tmp_path):
    path = write_run(tmp_path / "one", state="failed", why="no memory")
    result = compare(load_study(write_study(tmp_path, {"one": [path]})))
    assert result["images"] == 0
    assert len(result["left_out"]) == 1
    assert result["metrics"] == ["f1"]


def protocol(run: Path) -> None:
    edit(run, protocols={"test/whole": {**STAMP, "threshold": 0.4}})


def fingerprint(run: Path) -> None:
    edit(run, data={"fingerprint": "other"})


def fewer_images(run: Path) -> None:
    lines = (run / "samples.jsonl").read_text().splitlines(keepends=True)
    (run / "samples.jsonl").write_text("".join(lines[:7]))


@pytest.mark.parametrize(
    ("change", "text", "images"),
    [
        (protocol, "protocol differs in threshold", 12),
        (fingerprint, "data differ", 12),
        (fewer_images, "7 in common", 7),
    ],
)
def test_unlike_runs_are_refused_unless_mixed(study, change, text, images):
    change(study.parents[1] / "good1")
    with pytest.raises(InputError, match=text):
        compare(load_study(study), ["f1"])
    result = compare(load_study(study), ["f1"], mix=True, resamples=200)
    assert len(result["mixed"]) == 1
    assert text in result["mixed"][0]
    assert result["images"] == images


def test_no_common_image_cannot_be_mixed(tmp_path):
    arms = {name: [write_run(tmp_path / name)] for name in ("one", "two")}
    file = tmp_path / "two" / "samples.jsonl"
    file.write_text(file.read_text().replace(".png", ".tif"))
    with pytest.raises(InputError, match="no test image in common"):
        compare(load_study(write_study(tmp_path, arms)), mix=True)


def test_broken_records_are_refused(study, tmp_path):
    with pytest.raises(InputError, match=r"no score 'f2'(.|\n)*f1"):
        compare(load_study(study), ["f2"])
    samples = study.parents[1] / "good0" / "samples.jsonl"
    samples.write_text(samples.read_text() * 2)
    with pytest.raises(InputError, match="twice"):
        compare(load_study(study))
    with pytest.raises(InputError, match="no study"):
        load_study(tmp_path / "nowhere")
    info = json.loads((study / "study.json").read_text())
    for changes, text in (
        ({"format": "x/2"}, "format 'x/2'"),
        ({"base": "none"}, "is no arm"),
        ({"arms": [{"name": "plain"}]}, "incomplete"),
        ({"arms": info["arms"] + info["arms"][:1]}, "same name"),
    ):
        (study / "study.json").write_text(json.dumps({**info, **changes}))
        with pytest.raises(InputError, match=text):
            load_study(study)
    (study / "study.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        load_study(study / "study.json")


def test_runs_as_study(tmp_path):
    paths = [
        write_run(tmp_path / "v1", recipe="change/variant", base="change/tiny", quality=0.95),
        write_run(tmp_path / "v2", recipe="change/variant", base="change/tiny", quality=0.95, seed=1),
        write_run(tmp_path / "b1", recipe="change/tiny"),
        write_run(tmp_path / "b2", recipe="change/tiny", seed=1, hash="other"),
    ]
    study = runs_as_study(paths)
    assert [(arm.name, len(arm.runs)) for arm in study.arms] == [
        ("change/variant", 2), ("change/tiny", 1), ("change/tiny (other)", 1)
    ]  # fmt: skip
    assert study.base == "change/tiny"
    assert study.metric == "f1"
    assert study.protocol == "whole"
    result = compare(study, ["f1"], resamples=200)
    assert result["arms"][0]["metrics"]["f1"]["difference"]["value"] > 0.05
    assert runs_as_study(paths[:2]).base == "change/variant"
    again = write_run(tmp_path / "b3", recipe="change/tiny", hash="third")
    assert [arm.title for arm in runs_as_study([paths[2], again]).arms] == [
        "Change/Tiny",
        "Change/Tiny (third)",
    ]
    with pytest.raises(InputError, match="no run"):
        runs_as_study([])
    with pytest.raises(InputError, match="no run folder"):
        runs_as_study([tmp_path])


def rescore(run: Path, split: str, protocol: str) -> None:
    """The run as if it had been evaluated on `split` under `protocol` only."""
    place = {"split": split, "protocol": protocol}
    info = json.loads((run / "run.json").read_text())
    edit(
        run,
        protocols={f"{split}/{protocol}": STAMP},
        scores=[{**score, **place} for score in info["scores"]],
    )
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    (run / "samples.jsonl").write_text("".join(json.dumps({**line, **place}) + "\n" for line in lines))


def test_runs_are_compared_where_the_first_finished_one_was_evaluated(tmp_path):
    paths = [write_run(tmp_path / name, recipe=f"change/{name}") for name in ("failed", "val", "test")]
    edit(paths[0], state="failed", why="no memory")
    rescore(paths[1], "val", "tiles-256")
    study = runs_as_study(paths)
    assert (study.split, study.protocol) == ("val", "tiles-256")
    result = compare(study, ["f1"], resamples=200)
    assert [arm["n"] for arm in result["arms"]] == [0, 1, 0]
    assert result["left_out"][1]["why"] == "not evaluated on 'val' under protocol 'tiles-256'"
    for given in ({"split": "test"}, {"protocol": "whole"}):
        study = runs_as_study(paths, **given)
        assert (study.split, study.protocol) == ("test", "whole")
    assert runs_as_study(paths[:1]).split == "test"


def test_only_the_lines_of_the_scored_checkpoint_count(tmp_path):
    one, two = (write_run(tmp_path / name) for name in ("one", "two"))
    lines = [json.loads(line) for line in (one / "samples.jsonl").read_text().splitlines()]
    last = [{**line, "checkpoint": "last", "counts": dict.fromkeys(COUNTS, 1)} for line in lines]
    (one / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *last]))
    scores = [{**PLACE, "checkpoint": name, "name": "f1", "value": 0.5} for name in ("best", "last")]
    edit(one, scores=scores)
    study = write_study(tmp_path, {"one": [one], "two": [two]})
    found = [arm["metrics"]["f1"]["values"] for arm in compare(load_study(study), ["f1"])["arms"]]
    assert found[0] == found[1]
    edit(one, scores=scores[1:])
    found = [arm["metrics"]["f1"]["values"] for arm in compare(load_study(study), ["f1"])["arms"]]
    assert found[0] == [0.5]


def test_a_damaged_run_does_not_block_the_others(tmp_path):
    paths = [write_run(tmp_path / name, recipe=f"change/{name}") for name in ("one", "two")]
    (paths[0] / "run.json").write_text("{")
    assert [arm.name for arm in runs_as_study(paths).arms] == ["change/two"]
    with pytest.raises(InputError, match="no run to report"):
        runs_as_study(paths[:1])


def test_an_end_the_disk_did_not_take_is_told_by_the_study(tmp_path):
    lost = write_run(
        tmp_path / "lost", state="running", host=socket.gethostname(), pid=os.getpid(), process="x:1"
    )
    study = write_study(tmp_path, {"one": [lost]})
    info = json.loads((study / "study.json").read_text())
    info["arms"][0]["runs"][0] |= {"state": "failed", "why": "disk full"}
    (study / "study.json").write_text(json.dumps(info))
    (run,) = load_study(study).arms[0].runs
    assert (run.state, run.why) == ("failed", "disk full")
    assert run.record is not None


def test_what_describes_a_recipe_is_no_part_of_the_experiment(tmp_path):
    run = write_run(tmp_path / "one")
    text = (
        "".join(f"{key}: x\n" for key in DESCRIPTION)
        + "seed: 3\nmachine: {workers: 2}\nmodel: {name: m, k: 1e-3}\n"
    )
    (run / "recipe.yaml").write_text(text)
    assert experiment(RunFolder.open(run)) == {"model.name": "m", "model.k": 0.001}
