"""Figures from records: change-map sheets, learning curves, differences with intervals, confusion matrices.

All of them are drawn without a display, on white, in a size that fits a paper: one column is 3.5 inches, two are 7.16.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from anban.errors import InputError
from anban.report.tables import SCORES, number
from anban.study.effects import Effect, Effects
from anban.study.records import Arm, Run, Study
from anban.study.stats import Difference

COLUMN, PAGE = 3.5, 7.16  # inches: one and two columns of a paper

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Convention:
    """The colours (8-bit RGB) of the four outcomes in a change map."""

    tp: Colour
    tn: Colour
    fp: Colour
    fn: Colour
    words: dict[str, str]


def _convention(
    tp: tuple[str, Colour], tn: tuple[str, Colour], fp: tuple[str, Colour], fn: tuple[str, Colour]
) -> Convention:
    return Convention(tp[1], tn[1], fp[1], fn[1], {"tp": tp[0], "tn": tn[0], "fp": fp[0], "fn": fn[0]})


_WHITE, _BLACK = ("white", (255, 255, 255)), ("black", (0, 0, 0))
_RED, _GREEN, _BLUE = ("red", (255, 0, 0)), ("green", (0, 255, 0)), ("blue", (0, 0, 255))

PERCENT = 100.0  # scores are drawn in percent

# The conventions seen in papers and tools; a map never goes without its legend, as they contradict each other.
# colour-blind: the Okabe-Ito orange and blue between white and black, so the four also differ in lightness
# (L* about 100, 70, 46 and 0) and stay apart in grey print.
CONVENTIONS: dict[str, Convention] = {
    "fp-red-fn-green": _convention(_WHITE, _BLACK, _RED, _GREEN),
    "fp-green-fn-red": _convention(_WHITE, _BLACK, _GREEN, _RED),
    "opencd": _convention(_GREEN, _BLACK, ("yellow", (255, 255, 0)), _RED),
    "fp-red-fn-blue": _convention(_WHITE, _BLACK, _RED, _BLUE),
    "fp-red-fn-cyan": _convention(_WHITE, _BLACK, _RED, ("cyan", (0, 255, 255))),
    "colour-blind": _convention(_WHITE, _BLACK, ("orange", (230, 159, 0)), ("blue", (0, 114, 178))),
}
DEFAULT_CONVENTION = "fp-red-fn-green"
OUTCOMES = {"tp": "true positive", "tn": "true negative", "fp": "false positive", "fn": "false negative"}


def convention_named(name: str) -> Convention:
    """The convention called `name`.

    Raises:
        InputError: no convention has that name.
    """
    if name not in CONVENTIONS:
        raise InputError(
            f"There is no colour convention called {name!r}.",
            where="--convention",
            expected=", ".join(CONVENTIONS),
        )
    return CONVENTIONS[name]


def change_map(
    prediction: ArrayLike, label: ArrayLike, convention: str = DEFAULT_CONVENTION, *, threshold: float = 0.5
) -> NDArray[np.uint8]:
    """Colours each pixel by its outcome.

    Args:
        prediction: (H, W); floats are probabilities 0..1 and are change above `threshold`; booleans and integers
            (0/1 or 0/255) are decisions already.
        label: (H, W), 0 no change, anything else change.
        convention: a name in CONVENTIONS.
        threshold: 0..1, used for probabilities only.

    Returns:
        (H, W, 3) 8-bit RGB.

    Raises:
        InputError: the shapes differ, the convention is unknown, or an integer prediction is neither 0/1 nor 0/255.
    """
    colours = convention_named(convention)
    predicted, truth = np.asarray(prediction), np.asarray(label) != 0
    if predicted.shape != truth.shape or truth.ndim != 2:
        raise InputError(
            f"The prediction has shape {predicted.shape} and the label {truth.shape}.",
            expected="one (H, W) for both",
        )
    if np.issubdtype(predicted.dtype, np.floating):
        change = predicted > threshold
    else:
        values = set(np.unique(predicted).tolist())
        if not (values <= {0, 1} or values <= {0, 255}):
            # An 8-bit probability map would otherwise pass as "change wherever it is not exactly 0".
            raise InputError(
                f"An integer prediction holds the values {sorted(values)[:8]}.",
                expected="0/1 or 0/255",
                do="Divide stored probabilities by 255 first.",
            )
        change = predicted != 0
    drawn = np.empty((*truth.shape, 3), dtype=np.uint8)
    drawn[change & truth] = colours.tp
    drawn[~change & ~truth] = colours.tn
    drawn[change & ~truth] = colours.fp
    drawn[~change & truth] = colours.fn
    return drawn


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
    "lines.linewidth": 1.3,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # real fonts: publishers refuse Type 3
    "svg.hashsalt": "anban",
}


@contextmanager
def _paper() -> Iterator[None]:
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        yield


def arm_styles(study: Study) -> dict[str, tuple[str, Dash]]:
    """Arm name -> (colour, dash): the base in ink, the others in study order; dashes change when colours run out."""
    others = [arm.name for arm in study.arms if arm.name != study.base]
    colours = ARM_COLOURS[1:]
    styles: dict[str, tuple[str, Dash]] = {study.base: (INK, "-")}
    for place, name in enumerate(others):
        styles[name] = (colours[place % len(colours)], DASHES[place // len(colours) % len(DASHES)])
    return styles


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes stem.png and stem.pdf without a date inside, so the same records give the same bytes."""
    with _paper():
        paths = [stem.with_suffix(".png"), stem.with_suffix(".pdf")]
        dpi = figure.dpi if figure.get_label() == "pixels" else 300
        figure.savefig(paths[0], dpi=dpi, metadata={"Software": None})
        figure.savefig(paths[1], dpi=dpi, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return paths


def svg(figure: Figure) -> str:
    """The figure as an SVG document, without a date inside."""
    out = io.StringIO()
    with _paper():
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _settled(figure: Figure) -> Figure:
    """The figure with its layout worked out once, instead of anew for each format it is saved in."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


# --- (a) change-map sheets --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet with its per-image F1 (only maps have one; None is undefined)."""

    column: str
    pixels: NDArray[np.uint8]
    is_map: bool = False
    f1: float | None = None
    arm: str | None = None
    run: str | None = None


@dataclass(frozen=True)
class Scene:
    """One row of a sheet: T1, T2, ground truth, then a change map per method."""

    name: str
    tiles: tuple[Tile, ...]


def scenes(study: Study, convention: str = DEFAULT_CONVENTION) -> list[Scene]:
    """The scenes that every pictured run stored, with the maps of each arm's first finished run.

    Arms without pictures are left out of the rows. Empty where no run stored pictures.
    """
    shown = [(arm, next((run for run in arm.finished if run.pictures), None)) for arm in study.arms]
    pairs: list[tuple[Arm, Run]] = [(arm, run) for arm, run in shown if run is not None]
    if not pairs:
        return []
    names = [name for name in pairs[0][1].pictures if all(name in run.pictures for _, run in pairs)]
    rows = []
    for name in names:
        folder = pairs[0][1].pictures[name]
        label = _read(folder / "label.png", "L")
        tiles = [
            Tile("T1", _read(folder / "a.png", "RGB")),
            Tile("T2", _read(folder / "b.png", "RGB")),
            Tile("Ground truth", np.repeat(label[..., None], 3, axis=2)),
        ]
        for arm, run in pairs:
            probability = _read(run.pictures[name] / "probability.png", "L") / 255
            drawn = change_map(probability, label, convention, threshold=run.picture_threshold)
            f1 = run.image_score(study.split, study.protocol, name, "f1")
            tiles.append(Tile(arm.title, drawn, True, f1, arm.name, run.id))
        rows.append(Scene(name, tuple(tiles)))
    return rows


def _read(path: Path, mode: str) -> NDArray[np.uint8]:
    if not path.is_file():
        raise InputError(
            "A stored picture is missing.", where=path, do="Evaluate the run again with `anban eval`."
        )
    with Image.open(path) as image:
        return np.asarray(image.convert(mode))


def sheet(rows: Sequence[Scene], convention: str = DEFAULT_CONVENTION) -> Figure:
    """The classic sheet: scenes as rows; T1, T2, ground truth and each method as columns; the legend at the foot.

    One pixel of a scene is a whole number of pixels of the PNG, so nothing is blurred; the page width is 7.16 inches
    for six columns or more.
    """
    columns = [tile.column for tile in rows[0].tiles]
    height, width = rows[0].tiles[0].pixels.shape[:2]
    factor = max(1, round(240 / width))
    cell_w, cell_h = width * factor, height * factor
    gap = max(2, cell_w // 40)
    # Everything is placed in pixels of the PNG; `point` is the size of one typographic point there.
    inches = min(PAGE, 0.25 + 1.15 * len(columns))
    pictures_w = len(columns) * (cell_w + gap) - gap
    side = round(pictures_w * 0.17 / (inches - 0.17))  # 0.17 inches for the names of the scenes
    total_w = side + pictures_w
    dpi = total_w / inches
    point = dpi / 72
    longest = max(len(line) for column in columns for line in _wrapped(column))
    size = float(min(7.0, max(4.0, (cell_w / point) / (0.6 * longest))))
    lines = max(len(_wrapped(column)) for column in columns)
    head, under, foot = round(point * (size * 1.25 * lines + 3)), round(point * 8.5), round(point * 16)
    total_h = head + len(rows) * (cell_h + under) + foot

    with _paper():
        figure = Figure(figsize=(total_w / dpi, total_h / dpi), dpi=dpi)
        figure.set_label("pixels")
        for r, row in enumerate(rows):
            top = head + r * (cell_h + under)
            figure.text(
                (side - point * 3) / total_w,
                1 - (top + cell_h / 2) / total_h,
                stem := Path(row.name).stem,
                rotation=90,
                ha="right",
                va="center",
                fontsize=min(6, 72 * cell_h / dpi / (0.7 * len(stem))),  # a long name stays within its row
                color=MUTED,
            )
            for c, tile in enumerate(row.tiles):
                left = side + c * (cell_w + gap)
                big = np.kron(tile.pixels, np.ones((factor, factor, 1), dtype=np.uint8))
                box = (left / total_w, 1 - (top + cell_h) / total_h, cell_w / total_w, cell_h / total_h)
                axes = figure.add_axes(box)
                axes.set_axis_off()
                axes.imshow(big, interpolation="none", resample=False, aspect="auto")
                middle = (left + cell_w / 2) / total_w
                if r == 0:
                    text = "\n".join(_wrapped(tile.column))
                    figure.text(
                        middle,
                        1 - (head - point * 2.5) / total_h,
                        text,
                        ha="center",
                        va="bottom",
                        fontsize=size,
                    )
                if tile.is_map:
                    score = "F1 –" if tile.f1 is None else f"F1 {number(tile.f1 * 100, 1)}"
                    y = 1 - (top + cell_h + point * 1.5) / total_h
                    figure.text(middle, y, score, ha="center", va="top", fontsize=5.5, color=MUTED)
        figure.legend(
            handles=legend_patches(convention),
            loc="lower center",
            ncols=4,
            fontsize=6,
            handlelength=1.2,
            handleheight=0.9,
            columnspacing=1.4,
            borderaxespad=0.2,
            bbox_to_anchor=(0.5, 0.0),
        )
    return figure


def _wrapped(text: str, width: int = 16) -> list[str]:
    """A column title in lines of at most `width` characters where its words allow it."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def legend_patches(convention: str) -> list[Patch]:
    """One patch per outcome, as "FP (red)"."""
    colours = convention_named(convention)
    return [
        Patch(
            facecolor=tuple(v / 255 for v in getattr(colours, key)),
            edgecolor=MUTED,
            linewidth=0.5,
            label=f"{key.upper()} {word} ({colours.words[key]})",
        )
        for key, word in OUTCOMES.items()
    ]


# --- (b) learning curves ----------------------------------------------------------------------------------------


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


def curves(study: Study, *, metric: str = "f1") -> Figure | None:
    """Training loss and validation `metric` against the step, a small learning-rate panel below the loss.

    Faint lines are single seeds as recorded; the strong line is their mean, smoothed by an exponential moving average
    over a fortieth of the points where there are 80 or more; the band is mean ± standard deviation over seeds.
    Returns None where nothing was recorded.
    """
    panels = (
        ("train", "loss", "Training loss", 1.0),
        ("val", metric, f"Validation {SCORES.get(metric, metric)} (%)", PERCENT),
    )
    recorded = [any(run.series(at, name)[0].size for _, run in study.runs) for at, name, _, _ in panels]
    if not any(recorded):
        return None
    styles = arm_styles(study)
    with _paper():
        figure = Figure(figsize=(PAGE, 2.75), layout="constrained")
        places = figure.subplot_mosaic([["loss", "score"], ["rate", "score"]], height_ratios=[3.2, 1])
        for (at, name, title, scale), axes in zip(panels, (places["loss"], places["score"]), strict=True):
            for arm in study.arms:
                _curve(axes, arm, at, name, scale, *styles[arm.name])
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
        handles = [
            Line2D(
                [],
                [],
                color=styles[arm.name][0],
                linestyle=styles[arm.name][1],
                linewidth=1.6,
                label=arm.title,
            )
            for arm in study.arms
        ]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(len(handles), 4), handlelength=1.8
        )
        return _settled(figure)


def _curve(axes: Axes, arm: Arm, split: str, name: str, scale: float, colour: str, dash: Dash) -> None:
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
        scale == PERCENT and not (stack < 0).any()
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


# --- (c) differences --------------------------------------------------------------------------------------------

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


def differences(study: Study, metric: str) -> Figure | None:
    """A forest plot: each arm's difference to the base in points, with its 95 % interval and its verdict in words.

    Returns None where no arm has a difference.
    """
    rows = []
    family = 1
    for arm in study.arms:
        result = arm.results.get(metric)
        difference = result.difference if result else None
        if difference is not None and difference.value is not None:
            label = "\n".join(_wrapped(arm.title, 24))
            rows.append(_estimate(label, difference.value, difference, PERCENT, difference.verdict))
            family = difference.family
    base = study.arm(study.base).title
    return (
        _forest(rows, f"difference to {base}, {SCORES.get(metric, metric)} points", family) if rows else None
    )


def effects_plot(found: Effects) -> Figure | None:
    """A forest plot of the effects of switches, as `differences` draws those of arms; None where there are none."""
    scale = PERCENT if found.metric in SCORES else 1.0
    rows = []
    for effect in found.effects:
        lines = [
            line
            for change in effect.changes
            for line in _wrapped(
                f"{change.key}: {' → '.join(filter(None, (change.before, change.after)))}", 40
            )
        ]
        verdict = effect.verdict if effect.p is not None else ""
        rows.append(_estimate("\n".join(lines), effect.value, effect, scale, verdict))
    unit = f"{SCORES[found.metric]} points" if found.metric in SCORES else found.metric
    return _forest(rows, f"effect, {unit}", sum(e.p is not None for e in found.effects)) if rows else None


def _estimate(label: str, value: float, ends: Difference | Effect, scale: float, verdict: str) -> Estimate:
    low, high = (value if end is None else end for end in (ends.low, ends.high))
    return Estimate(label, scale * value, scale * low, scale * high, verdict)


def _forest(rows: Sequence[Estimate], what: str, family: int) -> Figure:
    """Values with their intervals and verdicts, one below the other.

    The verdict also shows in the marker: a triangle up for better, down for worse, an open circle where the two cannot
    be told apart.
    """
    reach = 1.08 * _reach([max(abs(row.value), abs(row.low), abs(row.high)) for row in rows])
    lines = sum(max(1.7, row.label.count("\n") + 1) for row in rows)
    with _paper():
        figure = Figure(figsize=(PAGE, 0.75 + 0.165 * lines), layout="constrained")
        axes, words = figure.subplots(1, 2, width_ratios=[1, 1], sharey=True)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlim(-reach, reach)
        for place, row in enumerate(rows):
            marker, colour, filled = VERDICTS.get(row.verdict, UNCLEAR)
            if abs(row.value) > reach:
                shown = number(row.value, sign=True)
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
            ends = f"  [{number(row.low, sign=True)}, {number(row.high, sign=True)}]" if row.verdict else ""
            words.text(0.55, place, f"{number(row.value, sign=True)}{ends}", va="center", ha="right")
            words.text(0.59, place, row.verdict, va="center", fontweight="bold", color=colour)
        axes.set_yticks(range(len(rows)), [row.label for row in rows], color=INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        words.set_axis_off()
        axes.set_xlabel(f"← worse    {what}    better →")
        corrected = f"verdict of {family} together (Holm)" if family > 1 else "verdict"
        for x, side, text in ((0.55, "right", "[95 % interval]"), (0.59, "left", corrected)):
            words.text(
                x, 1.01, text, transform=words.transAxes, ha=side, va="bottom", fontsize=7, color=MUTED
            )
        return _settled(figure)


def _reach(sizes: Sequence[float]) -> float:
    """How far the axis goes: to the largest difference, unless that is over four times all others and would hide them."""
    kept = sorted(sizes)
    while len(kept) > 1 and kept[-1] > 4 * kept[-2]:
        kept.pop()
    return kept[-1] or 1.0


# --- (d) confusion ----------------------------------------------------------------------------------------------


def confusion(study: Study) -> Figure | None:
    """A 2 x 2 matrix per arm: of the pixels that truly are (no) change, the share predicted as each class.

    Rows are the truth and add up to 100 %; shares are of all test pixels of a run, then averaged over its seeds.
    Returns None where no run stored counts.
    """
    shares = [(arm, _shares(study, arm)) for arm in study.arms]
    known = [(arm, share) for arm, share in shares if share is not None]
    if not known:
        return None
    columns = min(len(known), 4)
    lines = -(-len(known) // columns)
    with _paper():
        figure = Figure(figsize=(min(PAGE, 1.75 * columns + 0.3), 1.8 * lines), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(known):
                axes.set_axis_off()
                continue
            arm, share = known[place]
            axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
            for (truth, predicted), value in np.ndenumerate(share):
                text = "–" if np.isnan(value) else f"{100 * value:.1f} %"
                dark = not np.isnan(value) and value > 0.55
                axes.text(
                    predicted,
                    truth,
                    text,
                    ha="center",
                    va="center",
                    color="white" if dark else INK,
                    fontsize=7.5,
                )
            axes.set_title("\n".join(_wrapped(arm.title, 24)), fontsize=7)
            axes.set_xticks([0, 1], ["no change", "change"])
            axes.set_yticks([0, 1], ["no\nchange", "change"])
            axes.tick_params(length=0, labelsize=6)
            axes.grid(visible=False)
            axes.axhline(0.5, color="white", linewidth=1.5)
            axes.axvline(0.5, color="white", linewidth=1.5)
            for spine in axes.spines.values():
                spine.set_visible(False)
            if place % columns == 0:
                axes.set_ylabel("truth")
            if place + columns >= len(known):
                axes.set_xlabel("prediction")
        return _settled(figure)


def _shares(study: Study, arm: Arm) -> NDArray[np.float64] | None:
    """(2, 2) shares, rows truth, columns prediction; NaN where the truth has no such pixel."""
    each = []
    for run in arm.finished:
        counts = run.counts(study.split, study.protocol).values()
        if counts:
            tn, fp, fn, tp = (float(sum(c[key] for c in counts)) for key in ("tn", "fp", "fn", "tp"))
            matrix = np.array([[tn, fp], [fn, tp]])
            total = matrix.sum(axis=1, keepdims=True)
            each.append(np.divide(matrix, total, out=np.full((2, 2), np.nan), where=total > 0))
    return np.mean(each, axis=0) if each else None
