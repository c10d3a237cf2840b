"""What STNet sees: the receptive field of one place, and the derivatives that its enhancement takes.

The receptive field is the mean absolute gradient of Luo et al. 2016 (arXiv 1701.04128), there called the "effective" one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from anban.data.draws import derive
from anban.data.images import read_rgb
from anban.errors import InputError
from anban.tasks.change.demo import SceneSettings, make_scene
from anban.tasks.change.models.stnet.decoder import DecoderLevel
from anban.tasks.change.models.stnet.drawing.canvas import INK, LINES, MUTED, PAGE, STYLE
from anban.tasks.change.models.stnet.drawing.levels import bands
from anban.tasks.change.models.stnet.encoder import Level
from anban.tasks.change.models.stnet.enhancement import FirstOrder
from anban.tasks.change.models.stnet.network import STNet

SIZE = 256  # pixels: side of the demo pictures
SCENES = (3, 4, 5)  # of the demo, averaged in the receptive field
# Of the pixels as fractions 0..1, what the section `data` has by default.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOURS: dict[str, Any] = {"cmap": "bone", "interpolation": "nearest"}


def draw(model: STNet, folder: Path, images: Sequence[Path] = ()) -> list[Path]:
    """Write `receptive-field` and, where the model has an enhancement, `derivatives`, as PNG and PDF.

    Args:
        model: with the weights it is to be shown with; it is left as it is.
        folder: an existing one.
        images: two pictures, 8-bit RGB of one size; without them, pictures of the demo.

    Returns:
        the files.

    Raises:
        InputError: the model takes other than three bands; not two pictures, of two sizes, or smaller than `multiple_of`.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    pairs = [_read(images, model.multiple_of)] if images else [_demo(seed) for seed in SCENES]
    if (own := bands(model)) != 3:
        raise InputError(
            f"The network takes {own} bands.", where="in_chans", expected="3, as the pictures have"
        )
    with matplotlib.rc_context(STYLE):
        figures = {"receptive-field": receptive_field(model, pairs)}
        if levels := derivatives(settled(model, pairs), *pairs[0]):
            figures["derivatives"] = derivative_maps(levels, *pairs[0])
        return [file for name, figure in figures.items() for file in _save(figure, folder / name)]


def _save(figure: Figure, file: Path) -> list[Path]:
    """As PNG and PDF, the same bytes for the same figure."""
    files = [file.with_suffix(".png"), file.with_suffix(".pdf")]
    for one, metadata in zip(files, ({"Software": None}, {"CreationDate": None}), strict=True):
        figure.savefig(one, dpi=160, metadata=metadata)
    return files


# ---- pictures --------------------------------------------------------------------------------------------------------

Pair = tuple[Tensor, Tensor]
"""Dates a and b, (3, H, W) uint8."""


def _demo(seed: int) -> Pair:
    a, b, _ = make_scene(seed, SceneSettings(size=SIZE, unchanged=0.0))
    return torch.from_numpy(a).permute(2, 0, 1), torch.from_numpy(b).permute(2, 0, 1)


def _read(images: Sequence[Path], multiple: int) -> Pair:
    """Two pictures, cut at the right and at the bottom to multiples of `multiple`."""
    if len(images) != 2:
        raise InputError(f"Found {len(images)} pictures.", where="--image", expected="two, A and B, or none")
    a, b = (torch.from_numpy(read_rgb(path)).permute(2, 0, 1) for path in images)
    if a.shape != b.shape:
        raise InputError(f"The two dates are {tuple(a.shape[1:])} and {tuple(b.shape[1:])} pixels.", where=images[1],
                         expected="two pictures of one size")  # fmt: skip
    height, width = (side // multiple * multiple for side in a.shape[1:])
    if not height or not width:
        raise InputError(f"The pictures are {tuple(a.shape[1:])} pixels.", where=images[0],
                         expected=f"at least {multiple} along both sides")  # fmt: skip
    return a[:, :height, :width], b[:, :height, :width]


def _normalised(picture: Tensor) -> Tensor:
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return ((picture / 255 - mean) / deviation)[None]


def _picture(axes: Axes, values: Any, title: str = "", **options: Any) -> Any:
    axes.set_title(title, fontsize=7, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes.imshow(values, **options)


def settled(model: STNet, pairs: Sequence[Pair]) -> STNet:
    """A copy whose batch norms know the statistics of the pictures, where they never saw a batch.

    With their first ones, 0 and 1, they norm nothing, and what a fresh network scans is too faint to be seen.
    """
    model = copy.deepcopy(model)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    if any(norm.num_batches_tracked for norm in norms):
        return model
    for norm in norms:
        norm.momentum = None  # the mean over the batches
        norm.train()
    with torch.no_grad():
        for a, b in pairs:
            model(_normalised(a), _normalised(b))
    return model.eval()


# ---- the receptive field ---------------------------------------------------------------------------------------------


def field(model: STNet, pairs: Sequence[Pair]) -> Tensor:
    """How much every pixel of both dates moves date a's deepest feature at the centre: (2, H, W), the mean over the pairs.

    It is the absolute gradient of a random mixture of the feature's channels, the mean over the bands.
    """
    total = torch.zeros(())
    for number, pair in enumerate(pairs):
        images = [_normalised(picture).requires_grad_() for picture in pair]
        deepest, _, _ = list(model.encoder(*images))[-1]
        centre = deepest[0, :, deepest.shape[2] // 2, deepest.shape[3] // 2]
        generator = torch.Generator().manual_seed(derive("receptive field", number))
        score = (centre * torch.randn(centre.shape, generator=generator)).sum()
        gradients = torch.autograd.grad(score, images, materialize_grads=True)
        total = total + torch.stack([gradient[0].abs().mean(0) for gradient in gradients])
    return total / len(pairs)


def extent(gradient: Tensor, share: float = 0.95) -> float:
    """The smallest part of the pixels that holds `share` of a gradient, of any shape; 0..1, and 0 for no gradient."""
    ordered = gradient.flatten().double().sort(descending=True).values.cumsum(0)
    if not ordered[-1] > 0:
        return 0.0
    return (int((ordered < share * ordered[-1]).sum()) + 1) / len(ordered)


def apart(model: STNet) -> STNet:
    """A copy with the same weights and no integration."""
    other = copy.deepcopy(model)
    for level in other.encoder.levels:
        assert isinstance(level, Level)
        level.integration = None
    return other


def receptive_field(model: STNet, pairs: Sequence[Pair]) -> Figure:
    """Dates a and b, without integration and, where the model has it, with it."""
    fields = {"without integration": field(settled(apart(model), pairs), pairs)}
    if any(level.integration is not None for level in model.encoder.levels):
        fields["with integration"] = field(settled(model, pairs), pairs)
    figure = Figure(figsize=(PAGE / 2 * len(fields) + 0.2, 2.4), layout="constrained")
    columns = figure.subfigures(1, len(fields) + 1, squeeze=False, width_ratios=[*[1.0] * len(fields), 0.18])[
        0
    ]
    shown: Any = None
    for part, (title, gradient) in zip(columns, fields.items(), strict=False):
        part.suptitle(f"Receptive field {title}", fontsize=8, fontweight="bold", color=INK)
        panels = part.subplots(1, 2)
        logarithm = (gradient / gradient.max()).clamp(min=1e-9).log10()
        for date, axes, values, own in zip("ab", panels, logarithm, gradient, strict=True):
            shown = _picture(axes, values, f"date {date}", vmin=-5, vmax=0, **COLOURS)
            axes.title.set_color(LINES[date])
            axes.set_xlabel(
                f"{100 * float(own.sum() / gradient.sum()):.0f} % of the gradient", fontsize=6.5, color=MUTED
            )
        part.supxlabel(
            f"95 % of the gradient in {100 * extent(gradient):.0f} % of the pixels of both dates",
            fontsize=7,
            color=INK,
        )
    bar = figure.colorbar(shown, cax=columns[-1].add_axes((0.1, 0.25, 0.16, 0.5)))
    bar.set_label("log$_{10}$, largest = 0", fontsize=6.5, color=MUTED)
    bar.ax.tick_params(labelsize=6, colors=MUTED)
    return figure


# ---- the derivatives -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Derivatives:
    """Of one level: per operator and source the magnitude (H, W), the mean over the channels; what the branch adds."""

    level: int
    maps: dict[tuple[str, ...], Tensor]
    addition: Tensor


def derivatives(model: STNet, a: Tensor, b: Tensor) -> list[Derivatives]:
    """The levels that have an enhancement, from the shallowest, in one forward pass on a pair.

    What the branch adds is |AFF(trunk, branch) - trunk|.
    """
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[module] = (inputs[0][0], output[0])

    levels = [level for level in model.decoder if isinstance(level, DecoderLevel)]
    hooks = [
        module.register_forward_hook(note)
        for level in levels
        if level.enhancement is not None and level.aff is not None
        for module in (level.aff, *level.enhancement.operators)
    ]
    try:
        with torch.no_grad():
            model(_normalised(a), _normalised(b))
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for number, level in enumerate(levels):
        branch, aff = level.enhancement, level.aff
        if branch is None or aff is None:
            continue
        maps = {
            _name(operator, source): _magnitude(operator, seen[operator][1])
            for source, operator in zip(branch.sources, branch.operators, strict=True)
        }
        trunk, fused = seen[aff]
        found.append(Derivatives(number, maps, (fused - trunk).abs().mean(0)))
    return found


SOURCES = {
    "a": "date a",
    "b": "date b",
    "pair": "both dates",
    "difference": "difference",
    "fused": "joined features",
}


def _name(operator: nn.Module, source: str) -> tuple[str, ...]:
    order = "first-order" if isinstance(operator, FirstOrder) else "second-order"
    return order, "derivative operator", SOURCES[source]


def _magnitude(operator: nn.Module, answer: Tensor) -> Tensor:
    """(C * outputs, H, W) -> (H, W): the length over the outputs of a channel, its mean over the channels."""
    outputs: Any = operator.outputs
    lengths: Tensor = torch.linalg.vector_norm(answer.view(-1, outputs, *answer.shape[1:]), dim=1)
    return lengths.mean(0)


def derivative_maps(levels: Sequence[Derivatives], a: Tensor, b: Tensor) -> Figure:
    """Images a and b on the left; a row per level: what each operator gives, and what the branch adds."""
    names = [*levels[0].maps, ("addition", "of EDSS", "to the trunk")]
    figure = Figure(
        figsize=(1.36 + 1.16 * len(names), 0.4 + 1.08 * max(2, len(levels))), layout="constrained"
    )
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.3, 1.12 * len(names)])[0]
    for axes, picture, date in zip(left.subplots(2, 1), (a, b), "ab", strict=True):
        _picture(axes, picture.permute(1, 2, 0).numpy(), f"image {date}")
        axes.title.set_color(LINES[date])
    grid = right.subplots(len(levels), len(names), squeeze=False)
    for row, level in zip(grid, levels, strict=True):
        for axes, name, values in zip(row, names, [*level.maps.values(), level.addition], strict=True):
            top = float(values.quantile(0.995))
            title = "\n".join(name)
            _picture(axes, values.numpy(), title if level is levels[0] else "", vmin=0, vmax=top, **COLOURS)
        row[0].set_ylabel(f"level {level.level + 1}", fontsize=7, color=INK)
    return figure
