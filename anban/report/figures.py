"""Figures from records: learning curves, differences with intervals; and the style that all figures share.

All of them are drawn without a display, on white, in a size that fits a paper: one column is 3.5 inches, two are 7.16.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from anban.report.tables import GRADIENT, number
from anban.study.effects import Effect, Effects
from anban.study.records import Arm, Study
from anban.study.scores import Score, score_named
from anban.study.stats import Difference

COLUMN, PAGE = 3.5, 7.16  # inches: one and two columns of a paper


# --- style ------------------------------------------------------------------------------------------------------

INK, MUTED, RULE = "#1b1f24", "#5f6873", "#d5dae0"
# Okabe-Ito without its yellow, which vanishes on white; the base is ink, so variants stand out against it.
ARM_COLOURS = (INK, "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
Dash = Literal["-", "--", "-.", ":"]
DASHES: tuple[Dash, ...] = ("-", "--", "-.", ":")

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "text.color": INK,
    "text.parse_math": False,  # names of arms and classes may hold a dollar sign
    "lines.linewidth": 1.3,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # real fonts: publishers refuse Type 3
    "svg.hashsalt": "anban",
}


@contextmanager
def paper() -> Iterator[None]:
    """The style of all figures, as long as it is entered."""
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        yield


def arm_styles(study: Study) -> dict[str, tuple[str, Dash]]:
    """Arm name -> (colour, dash): the base in ink, the others in study order."""
    others = [arm.name for arm in study.arms if arm.name != study.base]
    return {study.base: (INK, "-"), **dict(zip(others, line_styles(len(others)), strict=True))}


def line_styles(count: int) -> list[tuple[str, Dash]]:
    """(colour, dash) of so many lines beside one in ink; dashes change when colours run out."""
    colours = ARM_COLOURS[1:]
    return [
        (colours[place % len(colours)], DASHES[place // len(colours) % len(DASHES)]) for place in range(count)
    ]


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes stem.png and stem.pdf without a date inside, so the same records give the same bytes."""
    with paper():
        paths = [stem.with_suffix(".png"), stem.with_suffix(".pdf")]
        dpi = figure.dpi if figure.get_label() == "pixels" else 300
        figure.savefig(paths[0], dpi=dpi, metadata={"Software": None})
        figure.savefig(paths[1], dpi=dpi, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return paths


def svg(figure: Figure) -> str:
    """The figure as an SVG document, without a date inside."""
    out = io.StringIO()
    with paper():
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def settled(figure: Figure) -> Figure:
    """The figure with its layout worked out once, instead of anew for each format it is saved in."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def wrapped(text: str, width: int = 16) -> list[str]:
    """A title in lines of at most `width` characters where its words allow it."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


# --- learning curves ----------------------------------------------------------------------------------------------


def smoothed(values: NDArray[np.float64], span: int) -> NDArray[np.float64]:
    """Exponential moving average with the weight of the first points corrected; undefined points are passed over.

    Args:
        values: (N,), NaN where undefined.
        span: about how many points one value looks back on; 1 leaves the values as they are.
    """
    keep = 1 - 1 / max(span, 1)
    out, total, weight = np.full(len(values), np.nan), 0.0, 0.0
    for place, value in enumerate(values):
        if not np.isnan(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
            out[place] = total / weight
    return out


def curves(study: Study) -> Figure | None:
    """Training loss and the study's score in validation against the step, a small learning-rate panel below the loss.

    Faint lines are single seeds as recorded; the strong line is their mean, smoothed by an exponential moving average
    over a fortieth of the points where there are 80 or more; the band is mean ± standard deviation over seeds.
    Returns None where nothing was recorded.
    """
    score = score_named(study.metric)
    heading = f"{score.title} (%)" if score.is_share else score.heading
    panels = (
        ("train", "loss", "Training loss", score_named("loss")),
        ("val", study.metric, f"Validation {heading}", score),
    )
    recorded = [any(run.series(at, name)[0].size for _, run in study.runs) for at, name, _, _ in panels]
    if not any(recorded):
        return None
    styles = arm_styles(study)
    with paper():
        figure = Figure(figsize=(PAGE, 2.75), layout="constrained")
        places = figure.subplot_mosaic([["loss", "score"], ["rate", "score"]], height_ratios=[3.2, 1])
        for (at, name, title, shown), axes in zip(panels, (places["loss"], places["score"]), strict=True):
            for arm in study.arms:
                _curve(axes, arm, at, name, shown, *styles[arm.name])
            axes.set_title(title)
            axes.margins(x=0.01)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        if recorded[0]:
            _loss_scale(places["loss"])
        places["score"].set_xlabel("step")
        rate = places["rate"]
        for arm in study.arms:
            for run in arm.runs[:1]:
                steps, values = run.series("train", "lr")
                rate.plot(
                    steps, values, color=styles[arm.name][0], linestyle=styles[arm.name][1], linewidth=0.9
                )
        rate.set_title("Learning rate", fontweight="normal", color=MUTED, fontsize=7)
        rate.set_ylim(bottom=0)
        rate.margins(x=0.01)
        rate.set_xlabel("step")
        rate.locator_params(axis="y", nbins=3)
        rate.sharex(places["loss"])
        places["loss"].tick_params(labelbottom=False)
        _arm_legend(figure, study)
        return settled(figure)


#: What a training step records beside its loss that is no term of it.
_NO_TERM = ("loss", "lr", "gradient_norm")
_TERMS_BESIDE = 3


def loss_terms(study: Study) -> Figure | None:
    """The terms of the training loss against the step, a panel each, drawn as in `curves`; None where a loss has one term."""
    recorded = (line["name"] for _, run in study.runs for line in run.metrics if line["split"] == "train")
    terms = [name for name in dict.fromkeys(recorded) if name not in _NO_TERM]
    if len(terms) < 2:
        return None
    styles = arm_styles(study)
    rows = -(-len(terms) // _TERMS_BESIDE)
    with paper():
        figure = Figure(figsize=(PAGE, 1.9 * rows + 0.4), layout="constrained")
        places = figure.subplots(rows, min(len(terms), _TERMS_BESIDE), squeeze=False).ravel()
        for axes, name in zip(places, terms, strict=False):
            for arm in study.arms:
                _curve(axes, arm, "train", name, score_named("loss"), *styles[arm.name])
            axes.set_title(name)
            axes.set_xlabel("step")
            axes.margins(x=0.01)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            if name.startswith(GRADIENT):  # a share
                axes.set_ylim(-0.02, 1.02)
            else:
                _loss_scale(axes)
        for axes in places[len(terms) :]:
            axes.remove()
        _arm_legend(figure, study)
        return settled(figure)


def _arm_legend(figure: Figure, study: Study) -> None:
    """The arms' names below a figure."""
    styles = arm_styles(study)
    handles = [
        Line2D([], [], color=colour, linestyle=dash, linewidth=1.6, label=arm.title)
        for arm in study.arms
        for colour, dash in (styles[arm.name],)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), handlelength=1.8)


def _curve(axes: Axes, arm: Arm, split: str, name: str, score: Score, colour: str, dash: Dash) -> None:
    scale = score.scale
    lines = [run.series(split, name) for run in arm.runs]
    lines = [(steps, values * scale) for steps, values in lines if steps.size]
    if not lines:
        return
    for steps, values in lines:
        stride = max(1, len(steps) // 500)
        axes.plot(steps[::stride], values[::stride], color=colour, linewidth=0.5, alpha=0.22)
    # A mean over seeds is only stated at steps that every finished seed reached.
    whole = [run.series(split, name) for run in arm.finished]
    whole = [(steps, values * scale) for steps, values in whole if steps.size]
    if not whole:
        return
    common = whole[0][0]
    for steps, _ in whole[1:]:
        common = np.intersect1d(common, steps)
    stack = np.stack([values[np.searchsorted(steps, common)] for steps, values in whole])
    span = len(common) // 40 if len(common) >= 80 else 1
    smooth = np.stack([smoothed(values, span) for values in stack])
    with np.errstate(invalid="ignore"):
        mean = smooth.mean(axis=0)
        spread = smooth.std(axis=0, ddof=1) if len(smooth) > 1 else np.zeros_like(mean)
    low, high = mean - spread, mean + spread
    if (
        score.is_share and not (stack < 0).any()
    ):  # shares cannot leave 0..100, whatever their standard deviation
        low, high = np.maximum(low, 0.0), np.minimum(high, 100.0)
    axes.fill_between(common, low, high, color=colour, alpha=0.15, linewidth=0)
    # One or two points make no line that could be seen.
    axes.plot(common, mean, color=colour, linestyle=dash, marker="o" if len(common) < 3 else "", markersize=3)


def _loss_scale(axes: Axes) -> None:
    """A log axis where the loss falls by a factor of four or more and stays positive."""
    values = np.concatenate(
        [np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.get_lines()] or [np.ones(1)]
    )
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() / values.min() >= 4:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)


# --- differences --------------------------------------------------------------------------------------------------

# Marker, colour, filled: the shape alone tells them apart.
VERDICTS = {"better": ("^", "#0072b2", True), "worse": ("v", "#d55e00", True)}
UNCLEAR = ("o", MUTED, False)


@dataclass(frozen=True)
class Estimate:
    """One line of a forest plot, in the unit of its axis; without an interval `low` and `high` are the value."""

    label: str
    value: float
    low: float
    high: float
    verdict: str


def differences(study: Study) -> Figure | None:
    """A forest plot: each arm's difference to the base in the study's score, with its 95 % interval and its verdict.

    Returns None where no arm has a difference.
    """
    rows = []
    family = 1
    score = score_named(study.metric)
    for arm in study.arms:
        result = arm.results.get(study.metric)
        difference = result.difference if result else None
        if difference is not None and difference.value is not None:
            label = "\n".join(wrapped(arm.title, 24))
            rows.append(_estimate(label, difference.value, difference, score, difference.verdict))
            family = difference.family
    base = study.arm(study.base).title
    return _forest(rows, f"difference to {base}", score, family) if rows else None


def effects_plot(found: Effects) -> Figure | None:
    """A forest plot of the effects of switches, as `differences` draws those of arms; None where there are none."""
    score = score_named(found.metric)
    rows = []
    for effect in found.effects:
        lines = [
            line
            for change in effect.changes
            for line in wrapped(
                f"{change.key}: {' → '.join(filter(None, (change.before, change.after)))}", 40
            )
        ]
        verdict = effect.verdict if effect.p is not None else ""
        rows.append(_estimate("\n".join(lines), effect.value, effect, score, verdict))
    return _forest(rows, "effect", score, sum(e.p is not None for e in found.effects)) if rows else None


def _estimate(label: str, value: float, ends: Difference | Effect, score: Score, verdict: str) -> Estimate:
    scale = score.scale
    low, high = (value if end is None else end for end in (ends.low, ends.high))
    return Estimate(label, scale * value, scale * low, scale * high, verdict)


def _forest(rows: Sequence[Estimate], what: str, score: Score, family: int) -> Figure:
    """Values with their intervals and verdicts, one below the other.

    The verdict also shows in the marker: a triangle up for better, down for worse, an open circle where the two cannot
    be told apart.
    """
    text = partial(number, digits=score.digits, sign=True)
    reach = 1.08 * _reach([max(abs(row.value), abs(row.low), abs(row.high)) for row in rows])
    lines = sum(max(1.7, row.label.count("\n") + 1) for row in rows)
    with paper():
        figure = Figure(figsize=(PAGE, 0.75 + 0.165 * lines), layout="constrained")
        axes, words = figure.subplots(1, 2, width_ratios=[1, 1], sharey=True)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlim(-reach, reach)
        for place, row in enumerate(rows):
            marker, colour, filled = VERDICTS.get(row.verdict, UNCLEAR)
            if abs(row.value) > reach:
                shown = text(row.value)
                left = row.value < 0
                axes.text(
                    0.0 if left else 1.0,
                    place,
                    f"‹ {shown}" if left else f"{shown} ›",
                    transform=axes.get_yaxis_transform(),
                    color=colour,
                    ha="left" if left else "right",
                    va="center",
                    fontweight="bold",
                )
            else:
                axes.plot(
                    [row.low, row.high], [place, place], color=colour, linewidth=1.4, solid_capstyle="butt"
                )
                for end in (row.low, row.high):
                    axes.plot([end, end], [place - 0.13, place + 0.13], color=colour, linewidth=1.0)
                axes.plot(
                    row.value,
                    place,
                    marker,
                    color=colour,
                    markerfacecolor=colour if filled else "white",
                    markersize=5.5,
                    markeredgewidth=1.2,
                )
            ends = f"  [{text(row.low)}, {text(row.high)}]" if row.verdict else ""
            words.text(0.55, place, f"{text(row.value)}{ends}", va="center", ha="right")
            words.text(0.59, place, row.verdict, va="center", fontweight="bold", color=colour)
        axes.set_yticks(range(len(rows)), [row.label for row in rows], color=INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        words.set_axis_off()
        sides = ("worse", "better") if score.higher_is_better else ("better", "worse")
        axes.set_xlabel(f"← {sides[0]}    {what}, {score.points}    {sides[1]} →")
        corrected = f"verdict of {family} together (Holm)" if family > 1 else "verdict"
        for x, side, heading in ((0.55, "right", "[95 % interval]"), (0.59, "left", corrected)):
            words.text(
                x, 1.01, heading, transform=words.transAxes, ha=side, va="bottom", fontsize=7, color=MUTED
            )
        return settled(figure)


def _reach(sizes: Sequence[float]) -> float:
    """How far the axis goes: to the largest difference, unless that is over four times all others and would hide them."""
    kept = sorted(sizes)
    while len(kept) > 1 and kept[-1] > 4 * kept[-2]:
        kept.pop()
    return kept[-1] or 1.0
