"""Denoised slices: low and full dose beside what each method makes of them, all in one window of Hounsfield units.

A slice's folder holds low.png, truth.png, image.png, content.png and noise.png (16 bits, Hounsfield units plus the `offset`
of index.json, whose `range` is the window); its entry has the `inset` (top, left, height, width) that is worth a closer look.
A network without branches has its image for its content, and what it took away for its noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from anban.errors import InputError
from anban.metrics.spectrum import histogram_edges, power_spectrum
from anban.report.figures import INK, MUTED, PAGE, RULE, line_styles, paper, settled
from anban.report.sheets import Chart, Pixels, Scene, Sheet, Shown, Swatch, Tile, read_picture
from anban.study.records import Run

Floats = NDArray[np.float64]
_DATA = {"color": MUTED, "linewidth": 2.6}  # the line of what is true, behind those of the methods


class _Column(NamedTuple):
    """One column of the sheet: pictures (H, W) in Hounsfield units, and what is said of them."""

    title: str
    image: Floats
    noise: Floats
    content: Floats
    score: str = ""
    run: str = ""


def sheet(
    shown: Sequence[Shown], names: Sequence[str], score: Callable[[Run, str], str], convention: str | None
) -> Sheet:
    """The slice, a part of it enlarged, what the branches gave, and what remains between it and the full dose."""
    if convention is not None:
        raise InputError("Slices are shown in grey.", where="--convention", do="leave it out")
    index = shown[0].run.pictured
    low, high = (float(end) for end in index["range"])
    edge = (high - low) / 4  # differences are fainter than tissue
    insets = {entry["name"]: entry["inset"] for entry in index["samples"]}
    scenes, charts = list[Scene](), list[Chart]()
    for name in names:
        columns = _columns(shown, name, score)
        truth = columns[1].image
        lines: list[list[Tile]] = [[], [], [], [], []]
        for title, image, noise, content, told, run in columns:
            whole = shaded(image, low, high)
            lines[0].append(Tile(title, whole, run=run))
            lines[1].append(Tile(f"Part, {title}", enlarged(whole, insets[name]), run=run))
            lines[2].append(Tile(f"Noise, {title}", shaded(noise, -edge, edge), run=run))
            seen = content[(truth >= low) & (truth <= high)]
            lines[3].append(Tile(f"Content, {title}", shaded(content, *_ends(seen)), run=run))
            lines[4].append(Tile(f"Residual, {title}", shaded(image - truth, -edge, edge), told, run))
        scenes.append(Scene(name, tuple(map(tuple, lines))))
        if not charts:
            charts = [_noise_chart(name, columns), _profile_chart(name, columns, insets[name])]
    return Sheet(
        tuple(scenes),
        columns=("Low dose", "Full dose", *(each.arm.title for each in shown)),
        legend=(
            Swatch((0, 0, 0), f"{low:g} HU and below; residual, noise -{edge:g} HU"),
            Swatch((128, 128, 128), "residual, noise 0 HU"),
            Swatch((255, 255, 255), f"{high:g} HU and above; residual, noise {edge:g} HU"),
        ),
        noun="slices",
        caption=f"In the window '{index['window']}', {low:g} to {high:g} HU, from above: the slice, a part of it, the "
        "noise branch (of the low dose: its true noise), the content branch (each on a scale of its own, as the fusion "
        "undoes any), and the difference to the full dose.",
        charts=tuple(charts),
    )


def _columns(shown: Sequence[Shown], name: str, score: Callable[[Run, str], str]) -> list[_Column]:
    """Low dose, full dose and the methods; a branch of the data is what a perfect one would give."""
    index, data = shown[0].run.pictured, shown[0].folder(name)
    low, truth = (_hounsfield(data / f"{dose}.png", index) for dose in ("low", "truth"))
    columns = [_Column("Low dose", low, low - truth, low), _Column("Full dose", truth, truth - truth, truth)]
    for each in shown:
        image, noise, content = (
            _hounsfield(each.folder(name) / f"{kind}.png", index) for kind in ("image", "noise", "content")
        )
        columns.append(_Column(each.arm.title, image, noise, content, score(each.run, name), each.run.id))
    return columns


def _ends(values: Floats) -> tuple[float, float]:
    """Between which values most lie."""
    low, high = np.percentile(values, (1, 99)) if values.size else (0.0, 0.0)
    return float(low), max(float(high), float(low) + 1)


def _noise_chart(scene: str, columns: Sequence[_Column]) -> Chart:
    """Power spectra and histograms of the noise branches beside those of the true noise."""
    low, _, *methods = columns
    edges = histogram_edges(low.noise)
    step = edges[1] - edges[0]
    with paper():
        figure = Figure(figsize=(PAGE, 2.9), layout="constrained")
        spectrum, histogram = figure.subplots(1, 2)
        for column, style in zip([low, *methods], [_DATA, *_styles(methods)], strict=True):
            label = "true noise" if column is low else column.title
            spectrum.plot(*power_spectrum(column.noise), label=label, **style)
            counts, _ = np.histogram(column.noise, edges)
            histogram.plot(edges[:-1] + step / 2, counts / column.noise.size / step, **style)
        spectrum.set(title="Noise power spectrum", xlabel="cycles per pixel", ylabel="HU²", yscale="log")
        histogram.set(title="Histogram", xlabel="HU", ylabel="density", ylim=(0, None))
        figure.legend(loc="outside lower center", ncols=4)
        caption = (
            f"What the noise branches give for {scene}: power by spatial frequency, and how often each value occurs, "
            "beside the true noise, low dose less full dose."
        )
        return Chart("noise", "Noise branches", caption, settled(figure))


def _profile_chart(scene: str, columns: Sequence[_Column], inset: Sequence[int]) -> Chart:
    """Hounsfield units along the middle row of the enlarged part."""
    top, left, height, width = inset
    row, places = top + height // 2, np.arange(left, left + width)
    styles = [{**_DATA, "color": RULE}, _DATA, *_styles(columns[2:])]
    with paper():
        figure = Figure(figsize=(PAGE, 2.9), layout="constrained")
        axes = figure.subplots()
        for column, style in zip(columns, styles, strict=True):
            axes.plot(places, column.image[row, places], label=column.title, **style)
        ends = np.array([f(column.image[row, places]) for column in columns[:2] for f in (np.min, np.max)])
        middle, reach = (ends.max() + ends.min()) / 2, ends.max() - ends.min() + 1
        axes.set(title=f"Row {row}", xlabel="column", ylabel="HU", ylim=(middle - reach, middle + reach))
        figure.legend(loc="outside lower center", ncols=4)
        caption = (
            f"The middle row of the enlarged part of {scene}; a method that is far off leaves the picture."
        )
        return Chart("profile", "Line profile", caption, settled(figure))


def _styles(methods: Sequence[_Column]) -> list[dict[str, Any]]:
    """The lines of the methods, the first in ink."""
    styles = [(INK, "-"), *line_styles(len(methods) - 1)]
    return [{"color": colour, "linestyle": dash, "linewidth": 1.0} for colour, dash in styles]


def shaded(hounsfield: Floats, low: float, high: float) -> Pixels:
    """Hounsfield units (H, W) as grey (H, W, 3), black at `low` and white at `high`."""
    grey = np.rint(255 * np.clip((hounsfield - low) / (high - low), 0, 1)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def enlarged(picture: Pixels, inset: Sequence[int]) -> Pixels:
    """A part (top, left, height, width) of a picture at the size of the whole, pixel by pixel."""
    top, left, height, width = inset
    part = Image.fromarray(picture[top : top + height, left : left + width])
    return np.asarray(part.resize((picture.shape[1], picture.shape[0]), Image.Resampling.NEAREST))


def _hounsfield(path: Path, index: dict[str, Any]) -> Floats:
    return read_picture(path, "I;16").astype(np.float64) - float(index["offset"])
