"""Every kind of attention of the task `detect` as its maps grow: time and memory beside full attention and its own definition.

One layer of 64 channels and one head, as in PVT-Tiny's first stage, on one picture's map of 14 x 14 to 112 x 112 tokens, float32.
"Full" is torch's fused attention of all tokens with all; the definition of a kind has the matrix of all weights, masked. The
cheap form computes the same in groups of tokens that share their keys (`anban.tasks.detect.models.attention`), which the tests
hold against the definition; here both are checked once more, on 14 x 14. What is expected to take more than 10 s or 3 GB on the
next larger map, as the square of the tokens has it, is not measured there. Rounds are half of those asked for, and at least
three; memory is that of forward and backward pass above the level before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from anban.tasks.detect.models.attention import AnyAttention, make_attention
from anban.tasks.detect.models.settings import Attention
from benchmarks.timing import (
    Findings,
    Row,
    Unavailable,
    Values,
    interleave,
    machine,
    megabytes,
    row,
    seconds,
    table,
)

FULL = "full"
KINDS: dict[str, Attention] = {
    FULL: Attention("full"),
    "reduced by 8": Attention("reduced", reductions=(8,)),
    "pooled to 7 x 7": Attention("pooled"),
    "strided": Attention("strided"),
    "strided, blocks of 32": Attention("strided", block=32, window=4),
    "fixed": Attention("fixed"),
    "fixed, blocks of 16": Attention("fixed", block=16, stride=4),
    "axial": Attention("axial"),
    "atrous": Attention("atrous"),
    "atrous-grid": Attention("atrous-grid"),
    "lsh": Attention("lsh"),
    "log-sparse": Attention("log-sparse"),
}
"""Blocks of 32 and of 16: VideoGPT's and torch-blocksparse's, as the recipes of the log have them."""
SIDES = (14, 28, 56, 112)
WIDTH = 64
SECONDS, MEGABYTES = 10.0, 3000.0
ERROR = 1e-4
WHATS = ("forward", "forward+backward", "memory")


class Way(NamedTuple):
    """A kind, in its cheap form or by its definition."""

    kind: str
    cheap: bool = True

    def __str__(self) -> str:
        return self.kind if self.cheap else f"{self.kind}, by definition"


class Layer:
    """One way on a map of `side` x `side` tokens."""

    def __init__(self, way: Way, side: int):
        torch.manual_seed(0)
        layer: AnyAttention = make_attention(KINDS[way.kind], 0, 1, width=WIDTH, heads=1)
        self.call = layer if way.cheap else layer.reference
        self.tokens = torch.randn(1, side * side, WIDTH, requires_grad=True)
        self.size = (side, side)

    @torch.no_grad()
    def forward(self) -> torch.Tensor:
        out: torch.Tensor = self.call(self.tokens, self.size)
        return out

    def both(self) -> None:
        self.call(self.tokens, self.size).sum().backward()


def run(rounds: int) -> Findings:
    """A row for each kind, map and quantity beside full attention, and one beside the definition."""
    before, rounds = machine()["load"], max(min(rounds, 3), rounds // 2)
    ways = [Way(kind, cheap) for kind in KINDS for cheap in (True, False)]
    rows: list[Row] = []
    for side in SIDES:
        layers = {str(way): Layer(way, side) for way in ways}
        if side == SIDES[0]:
            _check(layers)
        measured = dict(zip(WHATS, _measure(layers, rounds), strict=True))
        for what, values in measured.items():
            rows += _rows(values, _case(side, what), "MB" if what == "memory" else "s")
        ways = [way for way in ways if _goes_on(measured, str(way))]
    details = {"load": [before, machine()["load"]]}
    return Findings(rows, details, _page(rows, details), _picture(rows))


def _check(layers: Mapping[str, Layer]) -> None:
    for kind in KINDS:
        found, expected = (layers[str(Way(kind, cheap))].forward() for cheap in (True, False))
        if not torch.allclose(found, expected, atol=ERROR, rtol=ERROR):
            raise Unavailable(f"{kind} is not what its definition says")


def _measure(layers: Mapping[str, Layer], rounds: int) -> tuple[Values, Values, Values]:
    """Seconds of the forward pass and of both passes, MB of both."""

    def timed(work: Callable[[Layer], object]) -> Values:
        works = {name: (lambda layer=layer: work(layer)) for name, layer in layers.items()}
        repeat = 10 if next(iter(layers.values())).size[0] < 56 else 1
        return interleave({name: seconds(each, repeat) for name, each in works.items()}, rounds)

    forward, both = timed(Layer.forward), timed(Layer.both)
    memory = interleave({name: megabytes(layer.both) for name, layer in layers.items()}, 1, warm=False)
    return forward, both, memory


def _goes_on(measured: Mapping[str, Values], name: str) -> bool:
    """Whether the next map, with sixteen times the pairs of tokens, is worth waiting for."""
    time = median(taken.cpu or taken.value for taken in measured["forward+backward"][name])
    memory = median(taken.value for taken in measured["memory"][name])
    return 16 * time < SECONDS and 16 * memory < MEGABYTES


def _rows(values: Values, case: str, unit: str) -> list[Row]:
    pairs = [(kind, peer) for kind in KINDS for peer in (FULL, str(Way(kind, cheap=False))) if kind != peer]
    return [row(values, case, a, b, unit) for a, b in pairs if a in values and b in values]


# The page -------------------------------------------------------------------------------------------------------


def _case(side: int, what: str) -> str:
    return f"{side} x {side} tokens, {what}"


def _medians(rows: list[Row]) -> dict[tuple[str, str], float]:
    """Of the case and the way; seconds or MB."""
    return {
        (each.case, name): median(one.value for one in taken)
        for each in rows
        for name, taken in ((each.ours, each.ours_taken), (each.peer, each.peer_taken))
    }


def _page(rows: list[Row], details: Mapping[str, Any]) -> str:
    """A table for each quantity: kinds downwards, maps to the right."""
    found = _medians(rows)
    ratios = {(each.case, each.ours, each.peer): f"{median(each.ratios):.2f}" for each in rows}

    def cell(kind: str, side: int, what: str) -> str:
        case = _case(side, what)
        if (case, kind) not in found:
            return "–"
        value = found[case, kind]
        text = f"{value:.0f} MB" if what == "memory" else f"{1e3 * value:.1f} ms"
        full, definition = (
            ratios.get((case, kind, peer), "–") for peer in (FULL, str(Way(kind, cheap=False)))
        )
        return f"{text} ({full}, {definition})"

    lines = ["# The cost of attention", "", "![Time and memory over tokens](attention.png)", ""]
    lines += ["In brackets: over full attention, over the kind's own definition. –: not measured.", ""]
    for what in WHATS:
        cells = [[kind, *(cell(kind, side, what) for side in SIDES)] for kind in KINDS]
        lines += [f"## {what.capitalize()}", "", *table(["kind", *(f"{s} x {s}" for s in SIDES)], cells), ""]
    before, after = details["load"]
    return "\n".join([*lines, f"Load of the machine: {before} before, {after} after."]) + "\n"


def _picture(rows: list[Row]) -> Figure:
    """Both passes' time and memory over the number of tokens; dashed: full attention by its definition."""
    found = _medians(rows)
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    styles = {kind: {"color": f"C{n % 10}", "marker": "os"[n // 10]} for n, kind in enumerate(KINDS)}
    styles[FULL] = {"color": "black", "marker": "o"}
    styles[str(Way(FULL, cheap=False))] = {**styles[FULL], "linestyle": "--"}
    for axes, what, label in zip(panels, WHATS[1:], ("seconds, forward+backward", "MB"), strict=True):
        for name, style in styles.items():
            known = {side**2: found.get((_case(side, what), name)) for side in SIDES}
            points = [(tokens, value) for tokens, value in known.items() if value is not None]
            axes.loglog(*zip(*points, strict=True), markersize=4, label=name, **style)
        axes.set(xlabel="tokens", ylabel=label, xticks=[side**2 for side in SIDES],
                 xticklabels=[f"{side}²" for side in SIDES])  # fmt: skip
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure
