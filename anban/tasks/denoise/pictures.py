"""Denoised slices as pictures that a run keeps: figures of their own, and what a report draws them from.

A slice's folder holds low.png, image.png, truth.png, content.png and noise.png (16 bits, Hounsfield units plus `offset`),
slice.png (on fixed scales, but the content branch on its own; with a part enlarged), noise_branch.png (its power spectrum
and histogram beside those of the true noise) and profile.png (one row of the slice).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from anban.metrics.spectrum import histogram_edges, power_spectrum

Pixels = NDArray[Any]
WindowName = Literal["whole", "soft-tissue", "lung", "bone", "brain"]

WINDOWS: dict[str, tuple[float, float]] = {
    "whole": (-1024, 3072),
    "soft-tissue": (-160, 240),
    "lung": (-1350, 150),
    "bone": (-450, 1050),
    "brain": (0, 80),
}
"""Name -> lowest (black) and highest (white) Hounsfield unit."""
OFFSET = 32768
ENLARGED = 4  # the inset shows this fraction of a side


class Shown(NamedTuple):
    """A slice and what was made of it, (H, W) each, in Hounsfield units."""

    name: str
    low: Pixels
    truth: Pixels
    image: Pixels
    noise: Pixels
    content: Pixels


def draw_slices(folder: Path, slices: Sequence[Shown], window: str, split: str, protocol: str) -> None:
    """Keep some slices under `folder`, with an index.json of the view "slices"."""
    listed = []
    for shown in slices:
        place = folder / shown.name.replace("/", "-")
        place.mkdir(parents=True, exist_ok=True)
        for name in ("low", "image", "truth", "content", "noise"):
            stored = np.clip(np.rint(getattr(shown, name)) + OFFSET, 0, 2**16 - 1).astype(np.uint16)
            Image.fromarray(stored).save(place / f"{name}.png")
        for name, figure in (
            ("slice", sheet(shown, window)),
            ("noise_branch", noise_figure(shown)),
            ("profile", profile(shown)),
        ):
            figure.savefig(place / f"{name}.png", dpi=150)
        listed.append({"name": shown.name, "folder": place.name, "inset": list(inset_of(shown))})
    index = {"view": "slices", "window": window, "range": list(WINDOWS[window]), "offset": OFFSET,
             "protocol": protocol, "split": split, "samples": listed}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").write_text(json.dumps(index, indent=1, ensure_ascii=False), encoding="utf-8")


def panel(shown: Shown, window: tuple[float, float]) -> NDArray[np.uint8]:
    """Low dose, result and truth side by side, then the noise and the residual about grey: (H, 5 W, 3)."""
    edge = (window[1] - window[0]) / 4  # differences are fainter than tissue
    tones = [tone(x, window) for x in (shown.low, shown.image, shown.truth)]
    tones += [tone(x, (-edge, edge)) for x in (shown.noise, shown.image - shown.truth)]
    return np.repeat(np.concatenate(tones, axis=1)[..., None], 3, axis=2)


def tone(hounsfield: Pixels, window: tuple[float, float]) -> NDArray[np.uint8]:
    """Grey values of Hounsfield units in a window."""
    low, high = window
    shades: NDArray[np.uint8] = np.rint(np.clip((hounsfield - low) / (high - low), 0, 1) * 255).astype(
        np.uint8
    )
    return shades


def sheet(shown: Shown, window: str) -> Figure:
    """Both doses and the result in one window; noise and residual on one scale about zero; the content on its own."""
    low, high = WINDOWS[window]
    edge = (high - low) / 4  # differences are fainter than tissue
    top, left, height, width = inset_of(shown)
    # In the corner that is farthest from what it shows; axes count from below.
    corner = (0.62 if left + width / 2 < shown.truth.shape[1] / 2 else 0.0,
              0.62 if top + height / 2 > shown.truth.shape[0] / 2 else 0.0, 0.38, 0.38)  # fmt: skip
    content, own = "content branch (own scale)", content_range(shown, (low, high))
    images = {"low dose": shown.low, "output": shown.image, "full dose": shown.truth, content: shown.content}
    signed = {"noise branch": shown.noise, "output - full dose": shown.image - shown.truth}
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    axes = figure.subplots(2, 3)
    for part, (title, pixels) in zip(axes.flat, (images | signed).items(), strict=True):
        limits = (-edge, edge) if title in signed else own if title == content else (low, high)
        shade = {"cmap": "RdBu_r" if title in signed else "gray", "vmin": limits[0], "vmax": limits[1]}
        drawn = part.imshow(pixels, **shade)
        part.set_title(title, fontsize=9)
        part.set_axis_off()
        inset = part.inset_axes(corner)
        inset.imshow(pixels[top : top + height, left : left + width], **shade)
        inset.set(xticks=[], yticks=[])
        part.add_patch(_frame(left, top, width, height))
        figure.colorbar(drawn, ax=part, shrink=0.8, label="HU")
    figure.suptitle(f"{shown.name}, window '{window}' ({low:g} to {high:g} HU)", fontsize=10)
    return figure


def content_range(shown: Shown, window: tuple[float, float]) -> tuple[float, float]:
    """Between which values the content branch is shown: its 1st and 99th percentile where the full dose is in the window.

    Its values need not be those of a slice, since the fusion undoes any scale and sign; a branch that gives Hounsfield
    units is shown in about the window itself.
    """
    inside = (shown.truth >= window[0]) & (shown.truth <= window[1])
    values = shown.content[inside] if inside.any() else shown.content
    low, high = np.percentile(values, (1, 99))
    return float(low), float(high)


def noise_figure(shown: Shown) -> Figure:
    """What the noise branch gives beside the true noise: spectra by distance from the centre, and histograms."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    spectrum, histogram = figure.subplots(1, 2)
    noises = {"noise branch": shown.noise, "low dose - full dose": shown.low - shown.truth}
    edges = histogram_edges(shown.low - shown.truth)
    for name, noise in noises.items():
        spectrum.plot(*power_spectrum(noise), label=name)
        histogram.hist(noise.ravel(), bins=edges, histtype="step", density=True, label=name)
    spectrum.set(title="Noise power spectrum", xlabel="cycles per pixel", ylabel="HU²", yscale="log")
    histogram.set(title="Histogram", xlabel="HU", ylabel="density")
    spectrum.legend(fontsize=8)
    return figure


def profile(shown: Shown) -> Figure:
    """Hounsfield units along the row through the middle of the enlarged part."""
    top, _, height, _ = inset_of(shown)
    row = top + height // 2
    figure = Figure(figsize=(9.6, 3.0), layout="constrained")
    part = figure.subplots()
    lines = {
        "low dose": (shown.low, "0.75"),
        "full dose": (shown.truth, "black"),
        "output": (shown.image, "tab:red"),
    }
    for name, (pixels, colour) in lines.items():
        part.plot(pixels[row], color=colour, linewidth=0.9, label=name)
    part.set(title=f"Row {row}", xlabel="column", ylabel="HU")
    part.legend(fontsize=8)
    return figure


def inset_of(shown: Shown) -> tuple[int, int, int, int]:
    """Top, left, height and width of the part of the truth with the most detail, among places a half of its side apart."""
    height, width = (side // ENLARGED for side in shown.truth.shape)
    seen = np.clip(shown.truth, *WINDOWS["soft-tissue"])
    places = [
        (top, left)
        for top in range(0, seen.shape[0] - height + 1, max(1, height // 2))
        for left in range(0, seen.shape[1] - width + 1, max(1, width // 2))
    ]
    top, left = max(places, key=lambda at: seen[at[0] : at[0] + height, at[1] : at[1] + width].std())
    return top, left, height, width


def _frame(left: int, top: int, width: int, height: int) -> Rectangle:
    return Rectangle(
        (left - 0.5, top - 0.5), width, height, fill=False, edgecolor="tab:orange", linewidth=0.8
    )
