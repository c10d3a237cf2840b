"""Studies through the real path: plan, runs, resume, report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anban.engine.run import execute
from anban.errors import InputError
from anban.recipe import Recipe, load_recipe
from anban.record import RunFolder
from anban.report import write_report
from anban.study.compare import compare
from anban.study.records import load_study
from anban.study.study import load_plan, run_study, study_files

STUDY = """
title: A tiny study
question: Does anything happen in two steps?
base: change/demo-fc-siam-diff
name: plain
arms:
  no-flip: {title: without flips, set: {augment.flip: null}}
  tinycd: {recipe: change/demo-tinycd}
seeds: 2
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(STUDY)
    return tmp_path / "tiny.yaml"


def test_every_study_on_disk_loads() -> None:
    assert len(study_files()) >= 2
    for name in study_files():
        plan = load_plan(name, [])
        assert len(plan.arms) >= 2
        assert plan.question


def test_a_study_runs_compares_and_resumes(file: Path, tiny: list[str], tmp_path: Path) -> None:
    plan = load_plan(str(file), [*tiny, "train.iterations=2"])
    assert [arm.name for arm in plan.arms] == ["plain", "no-flip", "tinycd"]
    assert plan.seeds == [0, 1]
    order: list[tuple[str, int]] = []

    def run(recipe: Recipe) -> RunFolder:
        order.append((recipe.id, recipe.config["seed"]))
        if recipe.id == "change/demo-tinycd" and recipe.config["seed"] == 1 and len(order) <= 6:
            raise RuntimeError("out of luck")
        return execute(recipe, tmp_path / "runs", device="cpu")

    written = run_study(plan, tmp_path / "runs", run)
    content = json.loads(written.read_text())
    states = [[line["state"] for line in arm["runs"]] for arm in content["arms"]]
    assert states == [["finished"] * 2, ["finished"] * 2, ["finished", "failed"]]
    assert content["arms"][2]["runs"][1]["why"] == "out of luck"
    assert [seed for _, seed in order] == [0, 0, 0, 1, 1, 1]
    again = run_study(plan, tmp_path / "runs", run, resume=True)
    assert order[6:] == [("change/demo-tinycd", 1)]
    result = compare(load_study(again))
    assert [arm["n"] for arm in result["arms"]] == [2, 2, 2]
    page = write_report(again, tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    for arm in json.loads(again.read_text())["arms"]:
        for line in arm["runs"]:
            assert Path(line["path"]).name in text
    assert (tmp_path / "report" / "tables" / "comparison.tex").read_text().count("\\midrule") == 1


def test_a_run_compared_with_itself_is_not_distinguishable(
    file: Path, tiny: list[str], tmp_path: Path
) -> None:
    """Two arms that name the same runs, which `load_plan` would refuse."""
    plan = load_plan(str(file), [*tiny, "train.iterations=2"])
    written = run_study(
        plan, tmp_path / "runs", lambda recipe: execute(recipe, tmp_path / "runs", device="cpu")
    )
    content = json.loads(written.read_text())
    content["arms"] = [content["arms"][0], {**content["arms"][0], "name": "itself"}]
    written.write_text(json.dumps(content))
    difference = compare(load_study(written), ["oa"])["arms"][1]["metrics"]["oa"]["difference"]
    assert difference["value"] == 0
    assert difference["verdict"] == "not distinguishable"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("no-flip: {title: without flips, set: {augment.flip: null}}", "twin: {}"), "same experiment"),
        (("arms:", "armes:"), "did you mean 'study.arms'"),
        (("recipe: change/demo-tinycd", "recipe: change/demo-tinycdd"), "did you mean 'change/demo-tinycd'"),
        (("set: {augment.flip: null}", "sett: {augment.flip: null}"), "did you mean 'arms.no-flip.set'"),
        (("augment.flip", "augmnt.flip"), "'augmnt'"),
        (("seeds: 2", "seeds: []"), "study.seeds"),
        (("base: change/demo-fc-siam-diff", "base: null"), "study.base"),
        (("seeds: 2", "seeds: two"), "study.seeds"),
        (("seeds: 2", "seeds: [1, 1]"), "given twice"),
        (("seeds: 2", "seeds: 2\ncompare: {metrc: f1}"), "did you mean 'compare.metric'"),
        (("seeds: 2", "seeds: 2\ncompare: {split: vall}"), "not evaluated on split 'vall'"),
        (("arms:", "set: [a]\narms:"), "study.set"),
        (("arms:", "groups: {CNN: [plain, tinycdd]}\narms:"), "did you mean 'tinycd'"),
        (("arms:", "groups: {CNN: [plain], other: [plain]}\narms:"), "'plain' is listed twice"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(file: Path, change: tuple[str, str], message: str) -> None:
    file.write_text(STUDY.replace(*change))
    with pytest.raises(InputError) as error:
        load_plan(str(file), [])
    assert message in str(error.value)


EXPECTED = """
  wider: {set: {optimizer.lr: 0.01}, expected: {gain: 0.8, over: no-flip, source: "line 304"}}
  narrow: {set: {optimizer.lr: 0.1}, expected: {gain: -1}}
"""


def test_expectations_are_checked_and_recorded(file: Path, tmp_path: Path) -> None:
    file.write_text(STUDY.replace("seeds: 2", f"{EXPECTED.strip(chr(10))}\nseeds: 1"))

    def run(recipe: Recipe) -> RunFolder:
        raise RuntimeError("not today")

    written = run_study(load_plan(str(file), []), tmp_path, run)
    recorded = [arm["expected"] for arm in json.loads(written.read_text())["arms"]]
    assert recorded[:3] == [None] * 3
    assert recorded[3:] == [
        {"gain": 0.8, "over": "no-flip", "source": "line 304"},
        {"gain": -1.0, "over": "plain", "source": ""},
    ]
    read = [arm.expected for arm in load_study(written).arms]
    assert read[3] is not None
    assert (read[0], read[3].gain, read[3].over, read[3].difference) == (None, 0.8, "no-flip", None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{gain: 1, over: no-flp}", "did you mean 'no-flip'"),
        ("{gain: 1, over: wider}", "gain over itself"),
        ("{gain: much}", "arms.wider.expected.gain"),
        ("{over: no-flip}", "arms.wider.expected.gain"),
        ("{gain: 1, above: no-flip}", "arms.wider.expected.above"),
    ],
)
def test_expectations_that_mean_nothing_are_refused(file: Path, words: str, message: str) -> None:
    arm = f"  wider: {{set: {{optimizer.lr: 0.01}}, expected: {words}}}\n"
    file.write_text(STUDY.replace("seeds: 2", f"{arm}seeds: 1"))
    with pytest.raises(InputError) as error:
        load_plan(str(file), [])
    assert message in str(error.value)


def test_the_score_that_decides_is_the_one_named_or_that_of_the_runs(
    file: Path, tiny: list[str], tmp_path: Path
) -> None:
    plan = load_plan("change/demo-tinycd", [*tiny, "train.iterations=2"], seeds=1)
    assert plan.compare["metric"] == ""
    written = run_study(plan, tmp_path / "runs", lambda r: execute(r, tmp_path / "runs", device="cpu"))
    assert load_study(written).metric == "f1"
    file.write_text(f"{STUDY}compare: {{metric: iou}}")
    assert load_plan(str(file), []).compare["metric"] == "iou"


def test_groups_are_recorded(file: Path, tmp_path: Path) -> None:
    file.write_text(f"{STUDY}groups: {{small: [tinycd], other: [plain, no-flip]}}")

    def run(recipe: Recipe) -> RunFolder:
        raise RuntimeError("not today")

    study = load_study(run_study(load_plan(str(file), []), tmp_path, run))
    rows = [(group, arm.name) for group, arm in study.rows]
    assert rows == [("small", "tinycd"), ("other", "plain"), ("other", "no-flip")]


AXES = """
question: Do both switches add up?
base: change/demo-fc-siam-diff
axes:
  flip: {0: {}, 1: {augment.flip: null}}
  loss: {0: {}, 1: {loss.dice: null}, 2: {loss.dice.weight: 2.0, loss.bce: null}}
arms:
  tinycd: {recipe: change/demo-tinycd}
"""


def test_axes_are_combined(file: Path) -> None:
    file.write_text(AXES)
    plan = load_plan(str(file), [])
    assert [arm.name for arm in plan.arms] == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2", "tinycd"]
    assert plan.base == "0-0"
    assert plan.arms[0].recipe.hash == load_recipe("change/demo-fc-siam-diff").hash
    both = plan.arms[5].recipe.config
    assert "flip" not in both["augment"]
    assert list(both["loss"]) == ["dice"]
    assert both["loss"]["dice"]["weight"] == 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("base: change", "name: plain\nbase: change"), "the axes name it too"),
        (("flip: {0: {}, 1", "flip: {0: {augment.swap: {}}, 1"), "No combination is the base"),
        (
            ("{0: {}, 1: {loss.dice: null}", "{0: {}, 1: {augment.flip: null}"),
            "Two axes set one key: augment.flip",
        ),
        (("{0: {}, 1: {loss.dice: null}", "{0: {}, 1: {}"), "'0-0' and '0-1' are the same experiment"),
        (("flip: {0: {}, 1", "flip: {0: null, 1"), "study.axes.flip.0"),
        (("  tinycd:", "  1-2:"), "Two arms are called '1-2'"),
    ],
)
def test_axes_that_cannot_be_combined_are_refused(file: Path, change: tuple[str, str], message: str) -> None:
    file.write_text(AXES.replace(*change))
    with pytest.raises(InputError) as error:
        load_plan(str(file), [])
    assert message in str(error.value)


def test_a_recipe_is_a_study_of_one_arm() -> None:
    plan = load_plan("change/demo-tinycd", [], seeds=3)
    assert [arm.name for arm in plan.arms] == ["base"]
    assert plan.arms[0].title == "TinyCD"
    assert plan.seeds == [0, 1, 2]
