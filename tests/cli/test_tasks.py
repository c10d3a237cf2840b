"""Which task a command is about, and what inputs a network of the table takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import anban
from anban.cli import tasks
from anban.cli.main import app
from anban.cli.networks import build
from anban.errors import InputError
from anban.tasks import task_names
from anban.tasks.contract import Task


def test_a_task_is_named_or_asked_for() -> None:
    assert tasks.named("change") == "change"
    with pytest.raises(InputError, match="did you mean 'change'"):
        tasks.named("chang")
    with pytest.raises(InputError) as error:
        tasks.named(None)
    for task in task_names():
        assert task in str(error.value)


def test_data_tell_their_task_where_one_alone_knows_them(
    demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tasks.of_data([demo_data], None) == "change"
    with pytest.raises(InputError, match="no layout that a task knows"):
        tasks.of_data([tmp_path], None)
    with pytest.raises(InputError, match="no layout that a task knows"):
        tasks.of_data([demo_data, tmp_path], None)
    assert tasks.of_data([tmp_path], "change") == "change"
    monkeypatch.setattr(tasks, "_knows", lambda task, folder: True)
    if len(task_names()) > 1:
        with pytest.raises(InputError, match=" or "):
            tasks.of_data([demo_data], None)


def test_formulas_of_no_recipe_ask_for_the_task() -> None:
    done = CliRunner().invoke(app, ["formulas"])
    assert isinstance(done.exception, InputError)
    assert "--task" in str(done.exception)


class OfTwo(nn.Module):
    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        return a - scale * b


def test_a_network_gets_a_picture_for_each_argument_it_needs() -> None:
    assert [x.shape for x in Task.inputs(OfTwo())] == [(1, 3, 256, 256)] * 2
    assert len(Task.inputs(nn.Sequential(nn.Conv2d(3, 1, 1)))) == 1


def test_a_network_of_the_table_is_built_with_its_inputs() -> None:
    built = build("change/fc-siam-diff", [])
    assert len(built.inputs) == 2
    assert isinstance(built.model, type(anban.create_model("change/fc-siam-diff")))
    again = build("change/fc-siam-diff", [])
    for one, other in zip(built.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(build("change/demo-fc-siam-diff", []).inputs) == 2
    with pytest.raises(InputError, match=r"keys that begin with 'model\.'"):
        build("change/fc-siam-diff", ["optimizer.lr=1"])


def test_a_network_of_one_picture_is_profiled() -> None:
    words = ["profile", "seg/bisenetv2", "--size", "64", "--device", "cpu", "--json"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert json.loads(done.stdout)[0]["input"] == "1 x 1x3x64x64"
