"""Whole change networks: a training step, inference and memory of STNet beside others, and the share of the scan in it.

A training step is forward, binary cross entropy, backward and one step of AdamW, float32, on a batch of two pairs of 256 px;
inference is one pair, in evaluation mode and without gradients; memory is that of a training step above the level before. The
same two pictures go to all of them. STNet is compared with MambaBCD-tiny (ChangeMamba), its light form with TinyCD and with
MambaBCD-mini; MambaBCD-tiny also with itself on the scan in plain torch (backend `chunked`), as it runs where no kernel is at
hand. The scan's share is the time inside the backend, over that of the whole, in the same calls.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import anban
from anban.losses import bce
from anban.recipe import load_recipe
from anban.recipe.schema import construct
from anban.ssm import backends
from anban.tasks.change.loss import margin
from anban.tasks.change.models.mambabcd import SIZES
from anban.tasks.change.models.stnet import STNet
from benchmarks.timing import Findings, Row, interleave, megabytes, seconds

SIZE = 256


def _stnet(recipe: str) -> nn.Module:
    arguments = load_recipe(recipe).config["model"]
    network: nn.Module = construct(STNet, {k: v for k, v in arguments.items() if k != "name"})
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "STNet v16": lambda: _stnet("change/v16"),
    "STNet light": lambda: _stnet("change/levir-stnet-lite"),
    "MambaBCD-tiny": lambda: anban.create_model("change/mambabcd", **SIZES["tiny"]),
    "MambaBCD-mini": lambda: anban.create_model("change/mambabcd", **SIZES["mini"]),
    "TinyCD": lambda: anban.create_model("change/tinycd"),
}
PAIRS = (("STNet v16", "MambaBCD-tiny"), ("STNet light", "MambaBCD-mini"), ("STNet light", "TinyCD"))


class Network:
    """One network, ready for steps."""

    def __init__(self, make: Callable[[], nn.Module]):
        torch.manual_seed(0)
        self.model = make()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.pairs = torch.randn(2, 2, 3, SIZE, SIZE)
        self.label = (torch.rand(2, 1, SIZE, SIZE) > 0.9).float()

    def step(self) -> None:
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        bce(margin(_first(self.model(*self.pairs))), self.label).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    @torch.inference_mode()
    def infer(self) -> None:
        self.model.eval()(*self.pairs[:, :1])


def _first(outputs: Any) -> Tensor:
    found: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
    return found


def run(rounds: int) -> Findings:
    """A row per pair of networks and kind of work, and the shares of the scan."""
    networks = {name: Network(make) for name, make in NETWORKS.items()}
    rows: list[Row] = []
    for kind in ("step", "infer"):
        what = "a training step" if kind == "step" else "inference"
        works = {name: seconds(getattr(network, kind)) for name, network in networks.items()}
        taken = interleave(works, rounds)
        rows += [Row(f"{what}, {SIZE} px", ours, peer, taken[ours], taken[peer]) for ours, peer in PAIRS]
    heavy = interleave({name: megabytes(network.step) for name, network in networks.items()}, 3)
    rows += [Row("memory of a training step", a, b, heavy[a], heavy[b], unit="MB") for a, b in PAIRS]
    tiny = networks["MambaBCD-tiny"]
    for kind in ("step", "infer"):
        work = getattr(tiny, kind)
        both = {"auto": seconds(work), "chunked": seconds(lambda work=work: _with_backend("chunked", work))}
        taken = interleave(both, max(3, rounds // 2))
        case = f"MambaBCD-tiny, {'a training step' if kind == 'step' else 'inference'}, {SIZE} px"
        rows.append(Row(case, "our scan", "scan in plain torch", taken["auto"], taken["chunked"]))
    shares = {
        name: {kind: scan_share(getattr(network, kind), rounds) for kind in ("step", "infer")}
        for name, network in networks.items()
        if name != "TinyCD"
    }
    page = ["| network | a training step | inference |", "| --- | --- | --- |"]
    page += [f"| {name} | {share['step']:.0%} | {share['infer']:.0%} |" for name, share in shares.items()]
    return Findings(
        rows, {"scan_share": shares}, "# The scan's share of the time\n\n" + "\n".join(page) + "\n"
    )


def _with_backend(name: str, work: Callable[[], None]) -> None:
    before = os.environ.get(backends.VARIABLE)
    os.environ[backends.VARIABLE] = name
    try:
        work()
    finally:
        if before is None:
            del os.environ[backends.VARIABLE]
        else:
            os.environ[backends.VARIABLE] = before


def scan_share(work: Callable[[], None], rounds: int) -> float:
    """Time inside the scan's backend, over that of the whole: 0 to 1."""
    backend = backends.module(backends.choose("auto", torch.device("cpu"), torch.float32)[0])
    work()
    with _clocked(backend) as inside:
        begun = time.perf_counter()
        for _ in range(rounds):
            work()
        return inside[0] / (time.perf_counter() - begun)


@contextmanager
def _clocked(backend: Any) -> Iterator[list[float]]:
    inside = [0.0]
    originals = {name: getattr(backend, name) for name in ("forward", "backward")}

    def clocked(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                inside[0] += time.perf_counter() - begun

        return call

    for name, function in originals.items():
        setattr(backend, name, clocked(function))
    try:
        yield inside
    finally:
        for name, function in originals.items():
            setattr(backend, name, function)
