"""anban runs: what it prints, as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from anban.cli import runs as command
from anban.errors import InputError
from anban.record import RunFolder

INFO = {"title": "TinyCD", "task": "change", "commit": None, "environment": {"python": "3"}}
STAMP = {"name": "whole", "split": "test", "size": "256x256", "threshold": 0.5}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(command.app, [str(argument) for argument in arguments])


def printed(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*arguments: object) -> str:
    result = call(*arguments)
    assert isinstance(result.exception, InputError), result.output
    return str(result.exception)


def create(
    out: Path, seed: int = 0, f1: float = 0.5, size: str = "256x256", lr: str = "0.001", **info: Any
) -> RunFolder:
    run = RunFolder.create(
        out, "change/tiny", seed=seed, info={**INFO, "data": {"fingerprint": "abc"}, **info}
    )
    run.write_recipe(f"model:\n  name: change/tiny\noptim:\n  lr: {lr}\nseed: {seed}\n")
    run.log_metrics(1, 0.5, "train", None, {"loss": 2.0})
    run.log_metrics(2, 1.0, "train", None, {"loss": 1.5})
    score = {"split": "test", "protocol": "whole", "checkpoint": "best", "name": "f1", "value": f1}
    run.update(
        protocols={"test/whole": {**STAMP, "size": size}},
        scores=[score, {**score, "name": "iou", "value": None}],
    )
    run.finish("finished")
    return run


def test_list_is_aligned_text_elsewhere_than_on_a_terminal(tmp_path: Path) -> None:
    run = create(tmp_path, seed=3, f1=0.8125)
    failed = create(tmp_path, seed=4)
    failed.finish("failed", why="loss is NaN\nat [red]step 3")
    for arguments in (["--out", tmp_path], ["list", "--out", tmp_path], ["--out", tmp_path, "list"]):
        heads, *rows = printed(*arguments).splitlines()
        assert heads.split()[:7] == ["id", "recipe", "state", "outcome", "seed", "started", "seconds"]
        assert heads.split()[7:] == ["result", "of", "why", "job", "remark"]
        assert len(rows) == 2
        assert rows[0].endswith("loss is NaN at [red]step 3")
        assert rows[1].split()[:5] == [run.id, "change/tiny", "finished", "-", "3"]
        assert rows[1].endswith("0.8125  f1 (test, whole, best)")
        assert rows[0].index("change/tiny") == rows[1].index("change/tiny") == heads.index("recipe")


def test_list_as_json_and_its_filters(tmp_path: Path) -> None:
    first, second = create(tmp_path, seed=1, f1=0.25), create(tmp_path, seed=2)
    second.finish("failed", why="no memory")
    rows = json.loads(printed("--json", "--out", tmp_path))
    assert [row["id"] for row in rows] == [second.id, first.id]
    assert (rows[1]["result"], rows[1]["state"], rows[0]["why"]) == (0.25, "finished", "no memory")
    assert [
        r["id"] for r in json.loads(printed("list", "--json", "--state", "finished", "--out", tmp_path))
    ] == [first.id]
    assert [r["id"] for r in json.loads(printed("list", "--json", "--limit", 1, "--out", tmp_path))] == [
        second.id
    ]
    assert len(json.loads(printed("list", "--json", "--limit", 0, "--out", tmp_path))) == 2
    assert json.loads(printed("--json", "--out", tmp_path, "list", "--recipe", "seg/*")) == []
    assert "finished" in refusal("list", "--state", "finishd", "--out", tmp_path)


def test_each_run_is_listed_with_the_score_that_decides_for_it(tmp_path: Path) -> None:
    """Not with one score for all: runs of other tasks have others, on other splits."""
    place = {"split": "val", "protocol": "ss", "checkpoint": "last"}
    scores = [{**place, "name": name, "value": value} for name, value in (("pixel_acc", 0.9), ("miou", 0.7))]
    create(tmp_path, f1=0.25, select="f1")
    chosen, validated, neither = (create(tmp_path, seed=seed) for seed in (1, 2, 3))
    best = [{**scores[1], "checkpoint": "best", "value": 0.75}]
    chosen.update(select="miou", scores=[*scores, *best])
    validated.update(progress={"best": {"name": "miou"}}, scores=scores)
    neither.update(scores=scores)
    create(tmp_path, seed=4).update(scores=[])
    rows = json.loads(printed("--json", "--out", tmp_path))
    assert {row["seed"]: (row["result"], row["result_of"]) for row in rows} == {
        0: (0.25, "f1 (test, whole, best)"),
        1: (0.75, "miou (val, ss, best)"),
        2: (0.7, "miou (val, ss, last)"),
        3: (0.9, "pixel_acc (val, ss, last)"),
        4: (None, None),
    }


def test_an_empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert json.loads(printed("--json")) == []
    assert printed() == ""
    assert not (tmp_path / "runs").exists()
    assert "missing" in refusal("--out", "missing")


def test_on_a_terminal_a_table_of_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    runs = [create(tmp_path, seed=seed) for seed in range(3)]
    runs[2].finish("failed", why="a [bracket] in the message")
    monkeypatch.setattr(command, "SCREENFUL", 2)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "220")
    command.print_list(tmp_path)
    shown = capsys.readouterr()
    assert runs[2].id in shown.out
    assert runs[1].id in shown.out
    assert runs[0].id not in shown.out
    assert "a [bracket] in the message" in shown.out
    assert "--limit 0" in shown.err


def test_show(tmp_path: Path) -> None:
    run = create(tmp_path, seed=3, f1=0.75)
    stored = json.loads(printed("show", run.id, "--json", "--out", tmp_path))
    assert stored["metrics"] == [line for line in run.metrics() if line["step"] == 2]
    assert {key: stored[key] for key in run.info} == run.info
    assert stored["path"] == str(run.path)
    text = printed("show", run.id[:-1], "--out", tmp_path)
    lines = [line.split() for line in text.splitlines()]
    assert ["state", "finished"] in lines
    assert ["data.fingerprint", "abc"] in lines
    assert ["test", "whole", "best", "f1", "0.75"] in lines
    assert ["test", "whole", "best", "iou", "-"] in lines
    assert ["train", "-", "loss", "1.5", "2", "1"] in lines


def test_a_lost_run_is_shown_as_lost(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.update(state="running", process="another boot:1")
    assert json.loads(printed("show", run.id, "--json", "--out", tmp_path))["state"] == "lost"
    assert printed("list", "--state", "lost", "--out", tmp_path).count(run.id) == 1


def test_a_waiting_run_is_listed_with_its_job_and_a_remark_that_can_change(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "change/tiny", seed=0, info={**INFO, "remark": "later"}, state="planned")
    assert printed("list", "--state", "planned", "--out", tmp_path).splitlines()[1].endswith("  later")
    run.update(state="queued", job="12_3")
    assert printed("remark", run.id, "screen: 18205", "--out", tmp_path) == ""
    (row,) = json.loads(printed("list", "--state", "queued", "--out", tmp_path, "--json"))
    assert (row["job"], row["remark"], row["seconds"]) == ("12_3", "screen: 18205", None)
    assert ["remark", "screen:", "18205"] in [
        line.split() for line in printed("show", run.id, "--out", tmp_path).splitlines()
    ]
    printed("remark", run.id, "", "--out", tmp_path)
    assert RunFolder.open(run.path).info["remark"] is None


def test_show_names_the_run_that_supersedes(tmp_path: Path) -> None:
    failed, finished = create(tmp_path, hash="aaaa"), create(tmp_path, hash="aaaa")
    failed.update(state="failed", started="2026-01-01T00:00:00.000+00:00")
    shown = json.loads(printed("show", failed.id, "--json", "--out", tmp_path))
    assert (shown["state"], shown["superseded_by"]) == ("superseded", finished.id)
    assert "superseded_by" not in json.loads(printed("show", finished.id, "--json", "--out", tmp_path))


def test_an_unknown_run_names_the_nearest(tmp_path: Path) -> None:
    run = create(tmp_path)
    assert run.id in refusal("show", run.id[:-1] + "x", "--out", tmp_path)


def test_compare_puts_scores_and_recipes_side_by_side(tmp_path: Path) -> None:
    a, b = create(tmp_path, seed=1, f1=0.5), create(tmp_path, seed=1, f1=0.625, lr="0.01")
    found = json.loads(printed("compare", a.id, b.id, "--json", "--out", tmp_path))
    assert found["runs"] == [a.id, b.id]
    assert found["mixed"] == []
    assert found["protocols"] == {"test/whole": STAMP}
    assert found["scores"][0] == {
        "split": "test",
        "protocol": "whole",
        "checkpoint": "best",
        "name": "f1",
        "values": [0.5, 0.625],
    }
    assert found["recipe"] == [{"key": "optim.lr", "values": [0.001, 0.01]}]
    lines = [line.split() for line in printed("compare", a.id, b.id, "--out", tmp_path).splitlines()]
    assert ["test", "whole", "best", "f1", "0.5", "0.625"] in lines
    assert ["optim.lr", "0.001", "0.01"] in lines
    assert any(line[:1] == ["test/whole:"] and "256x256," in line for line in lines)


def test_compare_refuses_to_mix_protocols_unless_told(tmp_path: Path) -> None:
    a, b = create(tmp_path), create(tmp_path, size="1024x1024")
    message = refusal("compare", a.id, b.id, "--out", tmp_path)
    assert "256x256" in message
    assert "1024x1024" in message
    assert "--mix" in message
    assert "CAUTION, protocols mixed: test/whole has size 256x256" in printed(
        "compare", a.id, b.id, "--mix", "--out", tmp_path
    )
    mixed = json.loads(printed("compare", a.id, b.id, "--mix", "--json", "--out", tmp_path))["mixed"]
    assert mixed == [{"protocol": "test/whole", "key": "size", "values": ["256x256", "1024x1024"]}]


def test_compare_says_when_data_or_recipes_cannot_be_compared(tmp_path: Path) -> None:
    a, b = create(tmp_path), create(tmp_path, data={"fingerprint": "def"})
    text = printed("compare", a.id, b.id, "--out", tmp_path)
    assert "the data differ: abc" in text
    assert "the effective recipes are the same" in text
    b.recipe_file.unlink()
    assert f"{b.id} has no recipe.yaml" in printed("compare", a.id, b.id, "--out", tmp_path)
    assert "needs two runs" in refusal("compare", a.id, "--out", tmp_path)
    assert "named twice" in refusal("compare", a.id, a.id, "--out", tmp_path)


def test_a_key_set_to_null_differs_from_a_missing_key(tmp_path: Path) -> None:
    a, b = create(tmp_path), create(tmp_path)
    a.write_recipe("x: null\nsame: [1, {y: 2}]\n")
    b.write_recipe("same: [1, {y: 2}]\n")
    assert json.loads(printed("compare", a.id, b.id, "--json", "--out", tmp_path))["recipe"] == [
        {"key": "x", "values": [None, None]}
    ]


def test_rebuild_says_how_many(tmp_path: Path) -> None:
    create(tmp_path)
    (tmp_path / "ledger.sqlite").unlink()
    assert printed("rebuild", "--out", tmp_path).startswith("1 run in ")
    assert json.loads(printed("rebuild", "--json", "--out", tmp_path))["rows"] == 1


def test_watch_tells_where_unfinished_runs_stand(tmp_path: Path) -> None:
    create(tmp_path, seed=0)  # finished: nobody waits for it
    RunFolder.create(tmp_path, "change/later", seed=1, info=INFO, state="queued")
    run = RunFolder.create(tmp_path, "change/tiny", seed=2, info=INFO)
    best = {"step": 20, "name": "f1", "value": 0.8125}
    finding = {"kind": "gap", "step": 20, "what": "it [overfits]", "cause": "c", "remedy": "r", "ended": None}
    run.update(
        progress={"step": 20, "steps": 120, "best": best},
        time={"seconds_per_step": 9.0},
        findings=[{**finding, "kind": "collapse", "ended": 10}, finding],
    )
    lines = [{"step": step, "split": "train", "protocol": None, "name": "loss", "value": 1.0, "time": step / 4}
             for step in (30, 40)]  # fmt: skip
    with open(run.path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 41, "sp')  # being written
    found = json.loads(printed("watch", "--json", "--out", tmp_path))
    assert [row["state"] for row in found] == ["running", "queued"]
    assert found[0] | {"step": 40, "steps": 120, "seconds_per_step": 0.25, "seconds_left": 20.0} == found[0]
    assert found[1]["step"] is found[1]["seconds_left"] is None
    heads, running, queued = printed("watch", "--out", tmp_path).splitlines()
    assert heads.split() == ["id", "recipe", "state", "step", "best", "s/step", "left", "host", "finding"]
    assert running.split()[1:8] == ["change/tiny", "running", "40/120", "f1", "81.25", "0.25", "0:00:20"]
    assert running.endswith("gap: it [overfits]")
    assert queued.split()[2:5] == ["queued", "-/-", "-"]


def test_watch_says_when_nothing_runs(tmp_path: Path) -> None:
    create(tmp_path)
    result = call("watch", "--out", tmp_path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "nothing runs or waits" in result.stderr


def test_watch_on_a_terminal_goes_on_until_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.create(tmp_path, "change/tiny", seed=2, info=INFO)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        run.log_metrics(len(waits), 0.0, "train", None, {"loss": 1.0})
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", wait)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with pytest.raises(KeyboardInterrupt):
        command.watch(tmp_path, every=2.0)
    assert waits == [2.0, 2.0, 2.0]
