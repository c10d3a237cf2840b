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


def score(split: str, value: float | None) -> dict[str, Any]:
    return {"split": split, "protocol": "whole", "checkpoint": "best", "name": "f1", "value": value}


def told(folder: RunFolder) -> str:
    return json.dumps(_run_health(folder.path)["findings"])


def test_a_sound_run(tmp_path: Path) -> None:
    sound = run(
        tmp_path, scores=[score("train", 0.9), score("test", 0.8)], progress={"step": 10, "last_rise": 9}
    )
    assert _run_health(sound.path) == {"run": sound.id, "state": "finished", "findings": []}


def test_train_against_test(tmp_path: Path) -> None:
    assert "overfitted" in told(run(tmp_path, scores=[score("train", 0.95), score("test", 0.6)]))
    assert "overfitted" not in told(run(tmp_path, scores=[score("train", None), score("test", 0.6)]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"progress": {"step": 100, "last_rise": 20}}, "last rose at step 20 of 100"),
        ({"time": {"data_wait_share": 0.6}}, "60 % of the time is spent waiting for data"),
        ({"warnings": ["step 3, val: no pixel is predicted as change"]}, "no pixel is predicted"),
    ],
)
def test_what_else_it_sees(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in told(run(tmp_path, **changes))


def test_a_failed_run(tmp_path: Path) -> None:
    made = RunFolder.create(tmp_path, "change/x", seed=0, info={})
    made.finish("failed", "the loss is nan at step 3")
    assert "the run is failed: the loss is nan at step 3" in told(made)
