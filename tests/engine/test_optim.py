from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from anban.engine import parallel
from anban.engine.optim import adam, adamw, parameter_groups, sgd
from anban.errors import InputError


class Net(nn.Module):
    backbone = ("body.",)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 1, 1)


def test_four_groups() -> None:
    net = Net()
    groups = parameter_groups(net, 0.1, 0.01, 10.0, False)
    found = {(g["lr"], g["weight_decay"]): {id(p) for p in g["params"]} for g in groups}
    body, norm = net.body[0], net.body[1]
    assert found == {
        (0.1, 0.01): {id(body.weight)},
        (0.1, 0.0): {id(body.bias), id(norm.weight), id(norm.bias)},
        (1.0, 0.01): {id(net.head.weight)},
        (1.0, 0.0): {id(net.head.bias)},
    }
    assert len(parameter_groups(net, 0.1, 0.01, 1.0, True)) == 2


def test_frozen_parameters_are_left_out() -> None:
    net = Net()
    net.body.requires_grad_(False)
    assert {id(p) for g in parameter_groups(net, 0.1, 0.0, 1.0, True) for p in g["params"]} == {
        id(net.head.weight),
        id(net.head.bias),
    }


def test_each_optimiser_is_torchs_own() -> None:
    for make, kind in ((sgd, torch.optim.SGD), (adam, torch.optim.Adam), (adamw, torch.optim.AdamW)):
        optimizer = make(Net(), lr=0.5)
        assert type(optimizer) is kind
        assert {g["lr"] for g in optimizer.param_groups} == {0.5}
    assert sgd(Net(), momentum=0.7).param_groups[0]["momentum"] == 0.7
    assert adam(Net(), betas=(0.5, 0.9)).param_groups[0]["betas"] == (0.5, 0.9)


def test_new_layers_by_name() -> None:
    net = Net()
    groups = parameter_groups(net, 0.1, 0.0, 10.0, True, ["body.1"])
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert [rates[id(p)] for p in net.body[1].parameters()] == [1.0, 1.0]
    assert rates[id(net.body[0].weight)] == rates[id(net.head.weight)] == 0.1
    with pytest.raises(InputError, match=r"begins with 'neck'(.|\n)*body, head"):
        sgd(net, new_layers=["neck"])


@pytest.mark.parametrize(("processes", "rate"), [("same", 0.1), ("multiply", 0.4), ("divide", 0.025)])
def test_the_rate_and_the_number_of_processes(
    processes: Any, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "world", lambda: 4)
    assert {g["lr"] for g in sgd(Net(), lr=0.1, processes=processes).param_groups} == {rate}
