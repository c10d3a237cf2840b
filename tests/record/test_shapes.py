"""Shapes of records: what fits, what does not, and where that is said to lie."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from anban.errors import InputError
from anban.record import Ledger, RunFolder
from anban.record.shapes import DEEPEST, EACH, NUMBER, Maybe, from_json, misfit

SHAPE = {
    "id": str,
    "seed": Maybe(int),
    "scores": Maybe([{"name": str, "value": Maybe(NUMBER)}]),
    "by": Maybe({EACH: str}),
}


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({}, None),
        ({"seed": None, "more": object()}, None),
        ({"seed": 2**64 - 1, "by": {"a": "b"}}, None),
        ({"id": None}, "id"),
        ({"id": 3}, "id"),
        ({"seed": "3"}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"scores": {}}, "scores"),
        ({"scores": [{"name": "f1"}, {"value": 1}]}, "scores.1.name"),
        ({"scores": [{"name": "f1", "value": math.nan}]}, "scores.0.value"),
        ({"scores": [None]}, "scores.0"),
        ({"by": {"a": "b", "c": 1}}, "by.c"),
    ],
)
def test_the_first_misfit_is_found(changes: dict[str, Any], place: str | None) -> None:
    assert misfit({"id": "a", **changes}, SHAPE) == place


def test_a_value_that_is_no_object_has_no_place() -> None:
    assert misfit([], SHAPE) == ""


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * (DEEPEST + 2) + "]" * (DEEPEST + 2)])
def test_what_is_nested_too_deeply_is_no_record(text: str) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        from_json(text)
    assert from_json("[" * DEEPEST + "]" * DEEPEST) is not None


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(tmp_path, "change/tiny", seed=0, info={"commit": None, "environment": {}})
    run.log_metrics(1, 0.5, "train", None, {"loss": 2.0})
    return run


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("scores", [{"name": "f1"}], "scores.0.split"),
        ("data", [], "data"),
        ("efficiency", {"macs": "many"}, "efficiency.macs"),
        ("protocols", {"test/whole": {"threshold": "half"}}, "protocols.test/whole.threshold"),
    ],
)
def test_a_record_of_another_shape_is_refused_by_name(
    key: str, value: object, place: str, run: RunFolder
) -> None:
    (run.path / "run.json").write_text(json.dumps({**run.info, key: value}))
    with pytest.raises(InputError, match=f"no usable value under {place}"):
        RunFolder.open(run.path)


def test_a_line_of_another_shape_is_refused_by_number(run: RunFolder) -> None:
    with open(run.path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": "two", "split": "train", "name": "loss", "value": 1}\n')
    with pytest.raises(InputError, match="Line 2 has no usable value under step"):
        run.metrics()
    assert [line["step"] for line in run.latest()] == [1]


def test_a_run_that_is_nested_too_deeply_is_left_out_of_the_ledger(run: RunFolder) -> None:
    other = RunFolder.create(
        run.path.parents[2], "change/tiny", seed=1, info={"commit": None, "environment": {}}
    )
    text = json.dumps({**other.info, "difference": 0})
    (other.path / "run.json").write_text(
        text.replace('"difference": 0', '"difference": ' + "[" * 500 + "]" * 500)
    )
    ledger = Ledger(run.path.parents[2])
    assert ledger.rebuild() == 1
    assert [row["id"] for row in ledger.rows()] == [run.id]
