"""What tokens attend to, over the picture: the figures of `anban attention`.

For chosen pixels (queries) the attention of one block, head by head, and its rollout; and which tokens are attended to at all. All
of it comes from the weights that the network's own pass uses. Tokens lie where their patches lie: keys that a convolution or a
mean has joined are spread over the tokens they are made from, and what lies outside of the picture (padding) is not shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from anban.data.images import read_rgb
from anban.data.scenes import normalised
from anban.errors import InputError
from anban.tasks.detect.models.attention import AnyAttention
from anban.tasks.detect.models.attention.layers import Axial
from anban.tasks.detect.models.pvt import PVT, margins
from anban.tasks.detect.protocols import padded, parse_protocol, resized
from anban.tasks.detect.task import DetectTask

Size = tuple[int, int]
Heads = int | Literal["all", "mean"]

_MOST_BYTES = 4 * 2**30
"""Of an attention matrix that is still computed."""


@dataclass(frozen=True)
class Grid:
    """Where the tokens of a map lie in a picture.

    Attributes:
        size: height and width of the map.
        stride: pixels from a token to the next.
        first: y and x of the first token's centre, in pixels from the picture's corner.
    """

    size: Size
    stride: int
    first: tuple[float, float]

    def at(self, x: float, y: float) -> int:
        """The number of the token nearest to a point."""
        row, column = (
            min(max(math.floor((value - first) / self.stride + 0.5), 0), side - 1)
            for value, first, side in zip((y, x), self.first, self.size, strict=True)
        )
        return row * self.size[1] + column

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, lower and upper edge of the map in the picture, as matplotlib's `imshow` takes them."""
        (top, left), (height, width) = (
            (first - self.stride / 2 for first in self.first),
            (side * self.stride for side in self.size),
        )
        return left, left + width, top + height, top


@dataclass(frozen=True)
class Seen:
    """The attention of a block, on one picture. N tokens, Q queries.

    Attributes:
        grid: where the tokens lie.
        queries: numbers of the tokens that ask.
        weights: what they attend to, (heads, Q, N); rows add up to one, where no token is left out at a border.
        visible: what they could attend to, (heads, Q, N).
        received: the mean attention that each token receives from all, (heads, N).
        rollout: what the queries have been made from, (Q, N), from the first block of the stage to this one: Abnar and Zuidema,
            "Quantifying attention flow in transformers", ACL 2020 (half from the token itself in every block, mean over heads).
    """

    grid: Grid
    queries: list[int]
    weights: NDArray[np.float32]
    visible: NDArray[np.bool_]
    received: NDArray[np.float32]
    rollout: NDArray[np.float32]


def look(
    model: nn.Module, image: Tensor, stage: int, block: int, points: Sequence[tuple[float, float]]
) -> Seen:
    """The attention of a block while the network sees a picture.

    Args:
        model: a detector on a pyramid of transformer stages, in evaluation mode.
        image: (1, 3, H, W), normalised.
        stage, block: counted from 0.
        points: x and y of the queries, in pixels.

    Raises:
        InputError: a network without such stages, no such block, or an attention matrix that is too large.
    """
    pyramid = getattr(model, "encoder", None)
    if not isinstance(pyramid, PVT):
        raise InputError(f"{type(model).__name__} stands on a {type(pyramid).__name__}, whose attention cannot be drawn.",
                         expected="a pyramid of transformer stages, det/retinanet-pvt")  # fmt: skip
    for name, number, count in (
        ("stage", stage, len(pyramid.stages)),
        ("block", block, pyramid.settings.depths[stage] if stage < len(pyramid.stages) else 1),
    ):
        if number >= count:
            raise InputError(f"There is no {name} {number}.", where=f"--{name}", expected=f"0 to {count - 1}")  # fmt: skip
    layers: list[AnyAttention] = [
        each.attention for each in pyramid.stages[stage].blocks[: block + 1]  # type: ignore[index, union-attr]
    ]  # fmt: skip
    calls = _inputs(pyramid, layers, image)
    grid = _grid(pyramid, stage, image, calls[0][1])
    queries = [grid.at(*point) for point in points]
    rollout = torch.eye(grid.size[0] * grid.size[1])[queries]
    for layer, (x, size) in reversed(list(zip(layers, calls, strict=True))):
        weights, origins = _weights(layer, x, size), layer.origins(size)
        if layer is layers[-1]:
            seen = layer.seen(x, size)
            visible = torch.ones_like(weights[:, queries], dtype=torch.bool)
            if seen is not None:
                visible &= (seen[0] if seen.ndim == 4 else seen)[..., queries, :].cpu()
            asked, received = weights[:, queries], weights.mean(dim=1)
        attended = rollout @ weights.mean(dim=0)
        if origins is not None:
            attended = attended @ origins
            if layer is layers[-1]:
                asked, received = asked @ origins, received @ origins
                visible = (visible.float() @ origins) > 0
        rollout = (rollout + attended) / 2
    return Seen(grid, queries, *(each.numpy() for each in (asked, visible, received, rollout)))


def _inputs(model: nn.Module, layers: Sequence[nn.Module], image: Tensor) -> list[tuple[Tensor, Size]]:
    """What each of the layers is given, tokens and the size of their map."""
    calls: dict[nn.Module, tuple[Tensor, Size]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, Size]) -> None:
        calls[layer] = inputs

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return [calls[layer] for layer in layers]


@torch.no_grad()
def _weights(layer: AnyAttention, x: Tensor, size: Size) -> Tensor:
    """The attention matrix (heads, N, M) of a layer."""
    tokens = x.shape[1]
    origins = layer.origins(size)
    heads = layer.row.heads if isinstance(layer, Axial) else layer.heads
    needed = 4 * heads * tokens * (tokens if origins is None else len(origins))
    if needed > _MOST_BYTES:
        raise InputError(f"The attention matrix of {size[0]}x{size[1]} tokens takes {needed / 2**30:.1f} GiB.",
                         expected=f"at most {_MOST_BYTES / 2**30:.0f}", do="show the network a smaller picture: --protocol size-224")  # fmt: skip
    return layer.weights(x, size)[0].float().cpu()


def _grid(pyramid: PVT, stage: int, image: Tensor, size: Size) -> Grid:
    """Where the tokens of a stage lie. Every convolution moves the first centre by half its kernel, less its padding."""
    settings = pyramid.settings
    stride, first = 1, [0.5, 0.5]
    sides = [image.shape[-2], image.shape[-1]]
    for number in range(stage + 1):
        if settings.dilation.place == "between":
            stride, first, sides = _dilated(pyramid, number, stride, first, sides)
        if number == 0 or settings.entry == "patch":
            patch, step = settings.patch_sizes[number], settings.patch_strides[number]
            zeros = [margins(side, patch, step, settings.paddings[number]) for side in sides]
            first = [
                each + stride * ((patch - 1) / 2 - before)
                for each, (before, _) in zip(first, zeros, strict=True)
            ]
            sides = [
                (side + sum(around) - patch) // step + 1 for side, around in zip(sides, zeros, strict=True)
            ]
            stride *= step
    assert tuple(sides) == size
    return Grid(size, stride, (first[0], first[1]))


def _dilated(
    pyramid: PVT, stage: int, stride: int, first: list[float], sides: list[int]
) -> tuple[int, list[float], list[int]]:
    """Through the dilated convolutions in front of a stage: those that halve keep the first centre, others lose a border."""
    for layer in pyramid.stages[stage].dilated:  # type: ignore[union-attr]
        if pyramid.settings.dilation.kind == "halving":
            stride, sides = 2 * stride, [-(-side // 2) for side in sides]
            continue
        left = list(sides)
        for extent in layer.extents:  # type: ignore[union-attr]
            if min(left) > extent:
                left = [side - extent + 1 for side in left]
        first = [each + stride * (old - new) / 2 for each, old, new in zip(first, sides, left, strict=True)]
        sides = left
    return stride, first, sides


# Figures ----------------------------------------------------------------------------------------------------------


def draw(
    task: DetectTask,
    model: nn.Module,
    picture: Path,
    out: Path,
    *,
    stage: int = 0,
    block: int = 0,
    head: Heads = "all",
    queries: Sequence[tuple[float, float]] = (),
    protocol: str | None = None,
) -> list[Path]:
    """Write `<picture>-stage<s>-block<b>-{queries,received,rollout}.png` and return their paths.

    Args:
        head: a number, "all", or "mean": the mean over heads.
        queries: x and y in the picture's own pixels; by default its centre.
        protocol: how the picture is resized for the network; the task's first by default.

    Raises:
        InputError: a query outside of the picture, no such head, or what `look` raises.
    """
    pixels = read_rgb(picture)
    height, width = pixels.shape[:2]
    for x, y in queries:
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(f"The query {x:g},{y:g} lies outside of the picture.", where="--query",
                             expected=f"x below {width} and y below {height}")  # fmt: skip
    size = parse_protocol(protocol or task.evaluation.protocols[0]).of(height, width)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (task.data.mean, task.data.std))
    image = normalised(torch.from_numpy(pixels).permute(2, 0, 1), mean, std)[None]
    image = padded(resized(image, size), *size).to(next(model.parameters()).device)
    scale = size[1] / width, size[0] / height
    points = [(x * scale[0], y * scale[1]) for x, y in queries or [(width / 2, height / 2)]]
    seen = look(model, image, stage, block, points)
    chosen, names = _chosen(seen, head)
    place = f"stage {stage}, block {block}"
    figures = {
        "queries": _draw_queries(pixels, size, seen, chosen, names, points, place),
        "received": _draw_received(pixels, size, seen, chosen, names, place),
        "rollout": _draw_rollout(pixels, size, seen, points, place),
    }
    out.mkdir(parents=True, exist_ok=True)
    paths = {name: out / f"{picture.stem}-stage{stage}-block{block}-{name}.png" for name in figures}
    for name, figure in figures.items():
        figure.savefig(paths[name], dpi=120)
    return list(paths.values())


def _chosen(seen: Seen, head: Heads) -> tuple[list[list[int]], list[str]]:
    """Groups of heads whose mean is shown, and their names."""
    heads = len(seen.weights)
    if head == "mean":
        return [list(range(heads))], [f"mean of {heads} heads"]
    if head != "all" and head >= heads:
        raise InputError(f"There is no head {head}.", where="--head", expected=f"0 to {heads - 1}, all or mean")  # fmt: skip
    numbers = list(range(heads)) if head == "all" else [head]
    return [[number] for number in numbers], [f"head {number}" for number in numbers]


def _draw_queries(
    pixels: NDArray[np.uint8],
    size: Size,
    seen: Seen,
    chosen: Sequence[Sequence[int]],
    names: Sequence[str],
    points: Sequence[tuple[float, float]],
    place: str,
) -> Figure:
    """A row for each query, a column for each head."""
    figure, axes = _panels(len(points), len(chosen), size)
    for row, (query, point) in enumerate(zip(seen.queries, points, strict=True)):
        for column, (group, name) in enumerate(zip(chosen, names, strict=True)):
            weights = seen.weights[group, row].mean(axis=0)
            title = f"{place}, {name}"
            visible = np.asarray(seen.visible[group, row].any(axis=0))
            _overlay(axes[row][column], pixels, size, seen.grid, weights, title, visible)
            _mark(axes[row][column], seen.grid, query, point)
    return figure


def _draw_received(
    pixels: NDArray[np.uint8],
    size: Size,
    seen: Seen,
    chosen: Sequence[Sequence[int]],
    names: Sequence[str],
    place: str,
) -> Figure:
    figure, axes = _panels(1, len(chosen), size)
    for column, (group, name) in enumerate(zip(chosen, names, strict=True)):
        received = seen.received[group].mean(axis=0)
        title = f"{place}, {name}: received by each from all"
        _overlay(axes[0][column], pixels, size, seen.grid, received, title, np.asarray(received > 0))
    return figure


def _draw_rollout(
    pixels: NDArray[np.uint8], size: Size, seen: Seen, points: Sequence[tuple[float, float]], place: str
) -> Figure:
    figure, axes = _panels(1, len(points), size)
    for column, (query, point) in enumerate(zip(seen.queries, points, strict=True)):
        others = seen.rollout[column].copy()
        others[query] = 0  # what a token keeps of itself would outshine all else
        visible = np.asarray(others > 0)
        title = f"rollout up to {place}, without {seen.rollout[column, query]:.2g} of itself"
        _overlay(axes[0][column], pixels, size, seen.grid, others, title, visible)
        _mark(axes[0][column], seen.grid, query, point)
    return figure


def _panels(rows: int, columns: int, size: Size) -> tuple[Figure, list[list[Axes]]]:
    wide = 3.2
    figure = Figure(figsize=(wide * columns, (wide * size[0] / size[1] + 0.5) * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def _overlay(
    axes: Axes,
    pixels: NDArray[np.uint8],
    size: Size,
    grid: Grid,
    weights: NDArray[np.float32],
    title: str,
    visible: NDArray[np.bool_],
) -> None:
    """Weights (N) over the picture, brighter is more; the title tells them over what each token would get if all got the same.

    What cannot be seen is hatched in grey.
    """
    height, width = size
    axes.imshow(pixels.mean(axis=2), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    least, most = float(weights[visible].min()), float(weights[visible].max())
    heat = np.ma.masked_where(~visible, weights).reshape(grid.size)
    shown = axes.imshow(
        heat, cmap="inferno", vmin=least, vmax=most, extent=grid.extent, interpolation="nearest"
    )
    shown.set_alpha(0.2 + 0.5 * (heat.filled(least) - least) / max(most - least, 1e-30))
    hatch = np.kron(~visible.reshape(grid.size), np.ones((8, 8), dtype=bool))
    lines = (np.add.outer(*(np.arange(side) for side in hatch.shape)) % 8) < 2
    grey = np.zeros((*hatch.shape, 4))
    grey[hatch] = (0.75, 0.75, 0.75, 0.55)
    grey[hatch & lines] = (0.35, 0.35, 0.35, 0.8)
    axes.imshow(grey, extent=grid.extent, interpolation="nearest")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    even = weights.sum() / visible.sum()
    axes.set_title(f"{title}\n{least / even:.3g} to {most / even:.3g} times the even share", fontsize=7)


def _mark(axes: Axes, grid: Grid, query: int, point: tuple[float, float]) -> None:
    """The token that asks, and the point that it was chosen by."""
    row, column = divmod(query, grid.size[1])
    left, top = (
        first + number * grid.stride - grid.stride / 2
        for first, number in zip((grid.first[1], grid.first[0]), (column, row), strict=True)
    )
    sides = [left, left + grid.stride, left + grid.stride, left, left]
    heights = [top, top, top + grid.stride, top + grid.stride, top]
    axes.plot(sides, heights, color="cyan", linewidth=1.2)
    axes.plot(*point, marker="+", color="cyan", markersize=9, markeredgewidth=1.5)
