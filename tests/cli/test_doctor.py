from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anban.cli.doctor import _run_health
from anban.record import RunFolder


def run(tmp_path: Path, **changes: Any) -> RunFolder:
    made = RunFolder.create(tmp_path, "change/x", seed=0, info={})
    made.update(**changes)
    made.finish("finished")
    return made


FINDING = {
    "kind": "gap",
    "what": "f1 is 95 on training samples and 60 in validation",
    "cause": "The network has fitted the training samples.",
    "remedy": "Augment more.",
    "step": 40,
    "ended": None,
}


def told(folder: RunFolder) -> str:
    return json.dumps(_run_health(folder.path)["findings"])


def test_a_sound_run(tmp_path: Path) -> None:
    sound = run(tmp_path, outcome="healthy", findings=[])
    expected = {"run": sound.id, "state": "finished", "outcome": "healthy", "findings": []}
    assert _run_health(sound.path) == expected


def test_train_against_test(tmp_path: Path) -> None:
    """What has gone by itself is only worth knowing."""
    gone = {**FINDING, "kind": "collapse", "what": "no pixel", "step": 2, "ended": 8}
    ill = run(tmp_path, outcome="gap", findings=[FINDING, gone])
    found = _run_health(ill.path)
    assert found["outcome"] == "gap"
    first, second = found["findings"]
    assert first == {
        "level": "warning",
        "kind": "gap",
        "what": f"gap since step 40: {FINDING['what']}",
        "cause": FINDING["cause"],
        "do": FINDING["remedy"],
    }
    assert (second["level"], second["what"]) == ("info", "collapse since step 2, until step 8: no pixel")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"time": {"data_wait_share": 0.6}}, "60 % of the time is spent waiting for data"),
        ({"warnings": ["step 3, val: no pixel is predicted as change"]}, "no pixel is predicted"),
    ],
)
def test_what_else_it_sees(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in told(run(tmp_path, **changes))


def test_a_run_of_before_there_were_outcomes(tmp_path: Path) -> None:
    old = run(tmp_path)
    info = json.loads((old.path / "run.json").read_text())
    for key in ("outcome", "findings"):
        del info[key]
    (old.path / "run.json").write_text(json.dumps(info))
    assert _run_health(old.path) == {"run": old.id, "state": "finished", "outcome": None, "findings": []}


def test_what_ended_a_run_is_an_error(tmp_path: Path) -> None:
    made = RunFolder.create(tmp_path, "change/x", seed=0, info={})
    ended = {**FINDING, "kind": "diverged", "what": "the loss is nan at step 3"}
    made.finish(
        "failed", "Diverged: the loss is nan at step 3", outcome="diverged", findings=[ended, FINDING]
    )
    levels = [(finding["level"], finding["kind"]) for finding in _run_health(made.path)["findings"]]
    assert levels == [("error", "diverged"), ("warning", "gap")]


def test_a_failed_run(tmp_path: Path) -> None:
    made = RunFolder.create(tmp_path, "change/x", seed=0, info={})
    made.finish("failed", "the loss is nan at step 3")
    assert "the run is failed: the loss is nan at step 3" in told(made)
