"""A network stage by stage: what each one consists of, puts out and costs; several networks beside each other.

A network that has a method `describe() -> {part: {entry: text}}` says what its parts are, a part being the name of a module of it and
the entries whatever distinguishes it. Of any other network the parts are its direct children, and their only entry is their class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anban.engine.profile import children, levels

Entries = dict[str, str]


def parts(model: nn.Module) -> dict[str, Entries]:
    """The parts of a network, by the names of their modules, and what they consist of."""
    describe: Callable[[], dict[str, Entries]] | None = getattr(model, "describe", None)
    if describe is not None:
        return describe()
    return {name: {"consists of": type(part).__name__} for name, part in children(model)}


def stages(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, dict[str, Any]]:
    """What each part of a network consists of and costs, in the order of `parts`; `total` is the last.

    Returns:
        for each part its `entries`, `shapes` (of what it puts out, of all its calls), `parameters` and `macs`, the multiply-adds of
        one call of the network with `inputs`.
    """
    modules = dict(model.named_modules())
    described = parts(model)
    counter = FlopCounterMode(display=False)
    with counter:
        seen = levels(model, inputs, {name: modules[name] for name in described})
    counts = counter.get_flop_counts()
    shapes: dict[str, list[list[int]]] = {}
    for call in seen:
        shapes.setdefault(call["part"], []).extend(call["shapes"])
    found = {
        name: {
            "entries": entries,
            "shapes": shapes.get(name, []),
            "parameters": sum(p.numel() for p in modules[name].parameters()),
            "macs": sum(counts.get(f"{type(model).__name__}.{name}", {}).values()) // 2,
        }
        for name, entries in described.items()
    }
    total = {
        "entries": {},
        "shapes": [],
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": sum(counts.get("Global", {}).values()) // 2,
    }
    return {**found, "total": total}


class Compared(NamedTuple):
    """An entry of a part, in several networks.

    Attributes:
        part, entry: their names.
        texts: what each network has, "" where it has no such entry.
    """

    part: str
    entry: str
    texts: list[str]

    @property
    def differs(self) -> bool:
        return len(set(self.texts)) > 1


def side_by_side(networks: Sequence[Mapping[str, dict[str, Any]]]) -> list[Compared]:
    """Networks as `stages` gives them, entry by entry, `total` last."""
    rows = []
    for part in sorted(dict.fromkeys(part for network in networks for part in network), key="total".__eq__):
        texts = [_texts(network[part]) if part in network else {} for network in networks]
        for entry in dict.fromkeys(entry for each in texts for entry in each):
            rows.append(Compared(part, entry, [each.get(entry, "") for each in texts]))
    return rows


def _texts(part: Mapping[str, Any]) -> Entries:
    """What stands in a column: maps without their batch, as channels x height x width."""
    maps = ["x".join(map(str, shape[1:])) for shape in part["shapes"]]
    texts = dict(part["entries"])
    if maps:
        texts["puts out"] = " ".join(maps) if len(maps) < 3 else f"{maps[0]} .. {maps[-1]}"
    return texts | {
        "parameters (M)": f"{part['parameters'] / 1e6:.3f}",
        "multiply-adds (G)": f"{part['macs'] / 1e9:.3f}",
    }
