"""The goals and the page of `benchmarks.ssm_cpu`, from the details that it has measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import geometric_mean
from typing import Any

from benchmarks.ssm_cells import OURS, THREADS, WHATS, Shape
from benchmarks.ssm_floor import Rates, floor
from benchmarks.timing import machine

Details = Mapping[str, Any]
Cell = Mapping[str, Any]
FORWARD, BOTH = WHATS


# Goals ------------------------------------------------------------------------------------------------------------------


def goals(details: Details) -> list[tuple[str, str, str]]:
    """Goal, target and what was measured, for the fastest of our backends that runs here unless said otherwise."""
    best = next(name for name in OURS if name in details["cells"][0]["ms"])
    gains = _over(details, best, "anchor")
    startup, avx2 = details["startup"], details["avx2"]
    cold, warm = startup[f"{best}, cold"], startup[f"{best}, warm"]
    shapes_then = cold["other shapes"] - cold["the same again"]
    one_thread = geometric_mean(_over(details, best, "anchor", threads=1))
    error = max(line[best] for line in details["accuracy"].values())
    return [
        (
            "C1 over the fastest correct peer, geometric mean",
            "45x (55 forward, 37 forward+backward)",
            f"{geometric_mean(gains):.1f}x ({_mean(details, best, what=FORWARD)}, {_mean(details, best, what=BOTH)})",
        ),
        ("C2 the same, worst cell", "18x", f"{min(gains):.1f}x"),
        (
            "C3 over every peer, conditional ones too, worst cell",
            "12x",
            f"{min(_over(details, best, 'fastest')):.1f}x",
        ),
        (
            "C4 forward over the floor, 1 thread, N = 16 / 1",
            "1.3x / 1.7x",
            _over_floor(details, best, FORWARD),
        ),
        (
            "C5 forward+backward over the floor, 1 thread, N = 16 / 1",
            "1.45x / 1.9x",
            _over_floor(details, best, BOTH),
        ),
        (
            "C6 two threads over one, shape B, other work of torch in between, forward / forward+backward",
            "1.85x / 1.75x",
            " / ".join(f"{details['scaling'][what]:.2f}x" for what in WHATS),
        ),
        ("C7 over the same in C++", "1.0x", "not measured: there is no such twin here"),
        (
            "C8 memory beyond outputs and gradients, forward / forward+backward as a part of 4 times x, worst",
            "0 / 25 %",
            " / ".join(f"{_memory(details, best, what):.0f} %" for what in WHATS),
        ),
        (
            "C9 plain torch (chunked) over the fastest correct peer, geometric mean, N = 16 / 1",
            "6x / 1.5x",
            " / ".join(_mean(details, "chunked", states=states) for states in (16, 1)),
        ),
        (
            "C10 import / first calls warm / cold / then those of other shapes",
            "0 / 0.3 s / 5 s / 0",
            f"{warm['import']:.2f} s / {warm['first calls']:.2f} s / {cold['first calls']:.2f} s / {shapes_then:.2f} s",
        ),
        (
            "C11 kernels for AVX2, as C1, 1 thread",
            "28x",
            "not measured" if avx2 is None else f"{one_thread * avx2:.1f}x ({avx2:.2f} of this processor's)",
        ),
        (
            "C12 largest error against float64; 1 and 2 threads",
            "1e-6; the same bits",
            f"{error:.1e}; {'the same bits' if details['bitwise'][best] else 'other bits'}",
        ),
    ]


def _cells(details: Details, name: str, **having: Any) -> list[Cell]:
    """Those where `name` was measured and that have what is asked for, `states` of their shape included."""
    found = ({**cell, "states": _shape(details, cell["shape"]).states} for cell in details["cells"])
    return [cell for cell in found if name in cell["ms"] and all(cell[k] == v for k, v in having.items())]


def _over(details: Details, name: str, peer: str, **having: Any) -> list[float]:
    """How many times faster than the peer: `anchor`, the fastest correct one, or `fastest`, conditional ones too."""
    return [cell["ms"][cell[peer]] / cell["ms"][name] for cell in _cells(details, name, **having)]


def _mean(details: Details, name: str, **having: Any) -> str:
    return f"{geometric_mean(_over(details, name, 'anchor', **having)):.1f}x"


def _floor(cell: Cell, details: Details) -> float:
    """Milliseconds."""
    shape = _shape(details, cell["shape"])
    return 1e3 * floor(shape.elements, shape.states, Rates(**details["rates"]), backward=cell["what"] == BOTH)


def _over_floor(details: Details, name: str, what: str) -> str:
    of = [_cells(details, name, what=what, threads=1, states=states) for states in (16, 1)]
    return " / ".join(
        f"{geometric_mean(c['ms'][name] / _floor(c, details) for c in cells):.2f}x" for cells in of
    )


def _memory(details: Details, name: str, what: str) -> float:
    """Percent of four times the size of x in float32, the worst shape."""
    shares = []
    for key, line in details["memory"].items():
        shape, of = key.split(", ")
        if of == what:
            shares.append(100 * line[name] / (4e-6 * _shape(details, shape).elements))
    return max(shares)


def _shape(details: Details, name: str) -> Shape:
    return Shape(*details["shapes"][name])


# The page ---------------------------------------------------------------------------------------------------------------


def page(details: Details, about: str) -> str:
    """All of it as Markdown."""
    of, rates = machine(), Rates(**details["rates"])
    core = f"{rates.exps / 1e9:.2f} G exponentials and {rates.fmas / 1e9:.1f} G multiply-adds a second"
    lines = [
        "# The selective scan on a processor",
        "",
        " ".join(about.split()),
        "",
        f"{of['cpu']}, {of['cores']} cores, {of['platform']}, Python {of['python']}, torch {of['packages']['torch']}, "
        f"{time.strftime('%Y-%m-%d', time.gmtime())}. Floors: one core with {core}, "
        + ("measured here." if rates.measured else "taken from an AMD EPYC (Zen 4), not measured here."),
        "",
        f"Shapes ({', '.join(Shape._fields)}): "
        + "; ".join(f"{name} {tuple(shape)}" for name, shape in details["shapes"].items())
        + ".",
        "",
        "## Goals",
        "",
        *_table(("goal", "target", "measured"), details["goals"]),
    ]
    for number in THREADS:
        title = f"Milliseconds, forward / forward+backward, {number} thread{'s' * (number > 1)}"
        cells = [cell for cell in details["cells"] if cell["threads"] == number]
        lines += ["", f"## {title}", "", *_times(cells, details), *_absent(cells)]
    for title, key, form in (
        ("MB beyond outputs and gradients, 1 thread", "memory", "{:.1f}"),
        ("Largest error against float64, of y and all gradients", "accuracy", "{:.1e}"),
        ("Seconds to start, after torch", "startup", "{:.2f}"),
    ):
        lines += ["", f"## {title}", "", *_matrix(details[key], form)]
    return "\n".join(lines) + "\n"


def _times(cells: Sequence[Cell], details: Details) -> list[str]:
    """A line per shape, forward and forward+backward in one cell of the table."""
    names = list(dict.fromkeys(name for cell in cells for name in (*cell["ms"], *cell["absent"])))
    columns: dict[str, Callable[[Cell], str]] = {name: _milliseconds(name) for name in names}
    columns["fastest correct peer"] = lambda cell: str(cell["anchor"])
    columns |= {f"{name} over it": _gain(name) for name in OURS}
    columns["floor, 1 thread"] = lambda cell: f"{_floor(cell, details):.3g}"
    columns["quiet"] = lambda cell: "yes" if cell["quiet"] else f"no, CPU {_gain(OURS[0], 'cpu_ms')(cell)}"
    lines = []
    for shape in dict.fromkeys(cell["shape"] for cell in cells):
        pair = [cell for cell in cells if cell["shape"] == shape]
        lines.append((shape, *(" / ".join(map(column, pair)) for column in columns.values())))
    return _table(("", *columns), lines)


def _milliseconds(name: str) -> Callable[[Cell], str]:
    return lambda cell: f"{cell['ms'][name]:.3g}" if name in cell["ms"] else "–"


def _gain(name: str, time: str = "ms") -> Callable[[Cell], str]:
    """Times as fast as the fastest correct peer; by processor time, other work on the machine disturbs it less."""
    return lambda cell: f"{cell[time][cell['anchor']] / cell[time][name]:.1f}x" if name in cell[time] else "–"


def _absent(cells: Sequence[Cell]) -> list[str]:
    why = [
        f"- {name}, {cell['shape']}, {cell['what']}: {reason}."
        for cell in cells
        for name, reason in cell["absent"].items()
    ]
    return ["", "Left out:", "", *why] if why else []


def _matrix(rows: Mapping[str, Mapping[str, float]], form: str) -> list[str]:
    names = list(next(iter(rows.values())))
    lines = [(key, *(form.format(row[name]) for name in names)) for key, row in rows.items()]
    return _table(("", *names), lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)]
