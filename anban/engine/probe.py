"""Why a recipe does not converge: a few steps on one batch, and what its gradient does on the way through the network.

A network that can learn anything fits one batch. Where it does not, the gradient tells which part it does not reach, and a part that
is told nothing about the places of its tokens is a suspect of its own. Parts are those of `anban.engine.stages.parts`; any module
with a method `places(x) -> float` is asked whether it knows where its tokens are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from anban.data.draws import derive, seed_everything
from anban.engine.loop import Loop
from anban.engine.run import prepare
from anban.engine.stages import parts
from anban.engine.stream import StepSampler, batches, to_device
from anban.recipe import Recipe
from anban.tasks.contract import Task

#: A loss has fallen when it ends below this share of where it began, and risen above the other.
FALLEN, RISEN = 0.9, 1.1

#: A part whose gradient, over its parameters, is below this share of the median part's hardly moves.
FAINT = 1e-4

#: Below this difference a stage does not notice that its tokens have traded places.
BLIND = 1e-5


@dataclass
class Flow:
    """The gradient of a part, at the first step and after the last.

    Attributes:
        parameters: that are trained.
        norms: of the gradient, as the optimiser sees it (clipped, where the recipe clips).
        ratios: of these to the norm of the parameters.
        places: by how much its tokens differ once they trade places and are put back; None for parts without tokens.
    """

    parameters: int
    norms: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    places: float | None = None


@dataclass(frozen=True)
class Probe:
    """What was seen.

    Attributes:
        losses: of each step.
        flows: by the names of parts.
        verdict: in words, whether the loss of one batch goes down.
        findings: `level` "error" | "warning" | "info", `what`, `do`.
    """

    losses: list[float]
    flows: dict[str, Flow]
    verdict: str
    findings: list[dict[str, Any]]

    def told(self) -> dict[str, Any]:
        """As `anban doctor` tells it."""
        return {
            "loss": {"first": self.losses[0], "last": self.losses[-1], "steps": len(self.losses)},
            "verdict": self.verdict,
            "parts": {name: vars(flow) for name, flow in self.flows.items()},
            "findings": self.findings,
        }


def probe_recipe(recipe: Recipe, device: torch.device, steps: int = 20) -> Probe:
    """Probe a recipe with its own data, network, loss and optimiser; see `probe`.

    Raises:
        InputError: its data cannot be used.
    """
    return probe(*prepare(recipe, device), steps)


def probe(task: Task, loop: Loop, steps: int = 20) -> Probe:
    """Take steps on the first batch of training, at the recipe's peak rate: schedules and their warm-up are left out."""
    batch = loop.settings.batch_size
    sampler = StepSampler(len(loop.data), batch, loop.seed, 0, 1)  # type: ignore[arg-type]
    micro_batches = [to_device(part, loop.device) for part in next(batches(loop.data, sampler, task.collate))]
    for module in task.modules.values():
        module.train()
    modules = {
        (name if network == "model" else f"{network}.{name}"): task.modules[network].get_submodule(name)
        for network in task.optimized
        for name in parts(task.modules[network])
    }
    trained = {name: [p for p in module.parameters() if p.requires_grad] for name, module in modules.items()}
    flows = {name: Flow(sum(p.numel() for p in found)) for name, found in trained.items() if found}
    watching = False

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, flow in flows.items():
            own = [p for p in trained[name] if id(p) in owned]
            if watching and own:
                norm = _norm([p.grad for p in own if p.grad is not None])
                flow.norms.append(norm)
                flow.ratios.append(norm / max(_norm(own), 1e-30))

    seers, hooks = _seers(modules, flows)
    hooks += [optimizer.register_step_pre_hook(note).remove for optimizer in task.optimizers.values()]
    losses = []
    try:
        for step in range(steps):
            watching = step in (0, steps - 1)
            task.step = step
            seed_everything(derive(loop.seed, "step", step))
            losses.append(float(loop.updater.apply(task, micro_batches)["loss"]))
            for place, x in seers.items():
                flows[place].places = modules[place].places(x)  # type: ignore[operator]
            seers.clear()
            if not math.isfinite(losses[-1]):
                break
    finally:
        for remove in hooks:
            remove()
    verdict, finding = _verdict(losses)
    findings = [*([finding] if finding else []), *_cut(flows), *_blind(flows)]
    return Probe(losses, flows, verdict, findings)


def _seers(
    modules: Mapping[str, nn.Module], flows: Mapping[str, Flow]
) -> tuple[dict[str, Tensor], list[Callable[[], None]]]:
    """What parts that can be asked for places are given (filled by the next pass), and how to remove the hooks."""
    given: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if flows[name].places is None:
                given[name] = inputs[0].detach()

        return hook

    asked = [name for name in flows if hasattr(modules[name], "places")]
    return given, [modules[name].register_forward_pre_hook(keep(name)).remove for name in asked]


def _norm(tensors: list[Any]) -> float:
    return float(torch.stack([t.detach().norm() for t in tensors]).norm()) if tensors else 0.0


# Judgement --------------------------------------------------------------------------------------------------------


def _verdict(losses: list[float]) -> tuple[str, dict[str, Any] | None]:
    first, last = losses[0], losses[-max(1, len(losses) // 5) :]
    end = sum(last) / len(last)
    told = f"from {first:.4g} to {end:.4g} in {len(losses)} steps on one batch"
    if not math.isfinite(end):
        return f"the loss is no number after {len(losses)} steps", _found(
            "error",
            f"the loss is no number at step {len(losses)}",
            "lower optimizer.lr, or set train.clip_norm",
        )
    if end < FALLEN * first:
        return f"the loss falls, {told}: the network learns", None
    if end > RISEN * first:
        return f"the loss rises, {told}", _found("warning", f"the loss rises, {told}", "lower optimizer.lr")
    do = "take more --steps, or raise optimizer.lr; if nothing helps, look at the parts and change one thing at a time"
    return f"the loss hardly moves, {told}", _found("warning", f"the loss hardly moves, {told}", do)


def _cut(flows: Mapping[str, Flow]) -> list[dict[str, Any]]:
    """Parts that the gradient does not reach, and those where it is faint."""
    found = []
    ratios = sorted(flow.ratios[0] for flow in flows.values() if flow.ratios and flow.ratios[0] > 0)
    usual = ratios[len(ratios) // 2] if ratios else 0.0
    for name, flow in flows.items():
        if not flow.norms or any(not math.isfinite(norm) for norm in flow.norms):
            continue
        if not any(flow.norms):
            found.append(_found("error", f"no gradient reaches {name} ({flow.parameters} parameters)",
                                "nothing that it puts out counts for the loss, or the graph is cut behind it (detach, no_grad)"))  # fmt: skip
        elif max(flow.ratios) < FAINT * usual:
            found.append(_found("warning", f"hardly any gradient reaches {name}: {max(flow.ratios):.2g} of its parameters, "
                                f"{usual:.2g} elsewhere", "look at what lies behind it: saturated activations, norms, scales"))  # fmt: skip
    return found


def _blind(flows: Mapping[str, Flow]) -> list[dict[str, Any]]:
    places = {name: flow.places for name, flow in flows.items() if flow.places is not None}
    blind = [name for name, difference in places.items() if difference < BLIND]
    if not blind:
        return []
    what = f"{', '.join(blind)} {'does' if len(blind) == 1 else 'do'} not know where tokens are: they may trade places"
    if len(blind) == len(places):
        return [_found("warning", what, "give them position embeddings")]
    return [_found("info", f"{what}; what earlier stages have written into the tokens is all that tells it",
                   "try position embeddings in every stage")]  # fmt: skip


def _found(level: str, what: str, do: str) -> dict[str, Any]:
    return {"level": level, "what": what, "do": do}


def draw(probe: Probe) -> Figure:
    """The gradient of each part over the norm of its parameters, at the first step and after the last; and the loss."""
    figure = Figure(figsize=(7.2, 3 + 0.12 * len(probe.flows)), layout="constrained")
    bars, line = figure.subplots(1, 2, width_ratios=(3, 2))
    names = list(probe.flows)
    for when, place, label in ((0, -0.2, "first step"), (-1, 0.2, f"step {len(probe.losses)}")):
        values = [flow.ratios[when] if flow.ratios else 0.0 for flow in probe.flows.values()]
        bars.barh([number + place for number in range(len(names))], values, height=0.38, label=label)
        for number, value in enumerate(values):
            if not value:
                bars.annotate(" none", (0, number + place), xycoords=("axes fraction", "data"), va="center", fontsize=7, color="red")  # fmt: skip
    bars.set_yticks(range(len(names)), names, fontsize=7)
    bars.invert_yaxis()
    if any(ratio > 0 for flow in probe.flows.values() for ratio in flow.ratios):
        bars.set_xscale("log")
    bars.set_xlabel("norm of the gradient / norm of the parameters")
    bars.legend(fontsize=7)
    line.plot(range(1, len(probe.losses) + 1), probe.losses, marker=".")
    line.set(xlabel="step on one batch", ylabel="loss", ylim=(0, None))
    figure.suptitle(probe.verdict, fontsize=8)
    return figure
