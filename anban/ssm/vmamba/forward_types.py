"""What the `forward_type` strings of VMamba mean.

A string is a base name and suffixes: `v05_onnone_noz` is the cross-scan of `v05`, no normalisation behind the scan, no gate.
Many base names differ only in which CUDA kernel of the release they call and compute the same thing.

The parsers of the releases accept less than they seem to: VMamba strips `_no32`, `_oact`, `_noz`, `_nozact` and one out-norm tag,
each once and in this order from the end, so `v05_oact_noz` is unknown to it, `v3noz` (the spelling of ChangeMamba) too, and
`v2`, its default, asks for a kernel that its own check refuses. ChangeMamba knows no underscores and takes everything that
begins with `v0` for `v0`. An unknown string becomes a network that fails when it is called. Here suffixes come in any order,
with or without the underscore, and an unknown string is refused at once.

    python -m anban.ssm.vmamba        prints the table
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from anban.errors import InputError
from anban.ssm.orders import BIDIRECTIONAL, CROSS, OBLIQUE, OMNIDIRECTIONAL, ROTATED, UNIDIRECTIONAL

OutNorm = Literal["layer", "none", "dwconv3", "layer+dwconv3", "softmax", "sigmoid"]


@dataclass(frozen=True)
class ForwardType:
    """How an SS2D computes.

    Attributes:
        orders: scan orders of the four or eight directions (names of `anban.ssm.orders`: `ORDERS`, `OBLIQUE`); eight and
            oblique ones only with projection "features" and without cascade.
        cascade: rows first, every row a sequence of its own, then the columns of the result; `orders` does not apply.
        projection: where the step, B and C of the scan come from. "features": a projection per direction of the convolved
            features (`x_proj`, then `dt_proj` for the step). "input": all of them are outputs of `in_proj`, and the
            convolution stands in front of it.
        step: with projection "input", the step of a direction comes from "own" low-rank features of the direction, from
            low-rank features "shared" by all directions, or is given in "full", without `dt_proj`, to all alike.
        gate: the result is multiplied by nothing ("none"), by the second half of `in_proj` as it is ("linear") or after the
            activation ("activated"), or by the scanned features themselves ("features"; projection "input" only).
        out_norm: what stands behind the sum over the directions: a layer norm over channels, nothing, a depth-wise 3x3
            convolution, both, a softmax over the pixels, a sigmoid.
        out_activation: whether a GELU follows the out norm.
        float32_inputs: whether features, step, B and C are cast to float32 in front of the scan. The scan computes in
            float32 in any case; under autocast the cast costs memory and keeps their gradients in float32.

    Raises:
        InputError: attributes that do not go together.
    """

    orders: tuple[str, ...] = CROSS
    cascade: bool = False
    projection: Literal["features", "input"] = "features"
    step: Literal["own", "shared", "full"] = "own"
    gate: Literal["none", "linear", "activated", "features"] = "activated"
    out_norm: OutNorm = "layer"
    out_activation: bool = False
    float32_inputs: bool = False

    def __post_init__(self) -> None:
        fused = self.projection == "input"
        gates = ("none", "features") if fused else ("none", "linear", "activated")
        together = not self.cascade if fused else self.step == "own"
        plain = len(self.orders) == len(CROSS) and not OBLIQUE.keys() & set(self.orders)
        any_order = not fused and not self.cascade and len(self.orders) in (len(CROSS), len(OMNIDIRECTIONAL))
        if not (plain or any_order) or self.gate not in gates or not together:
            raise InputError(
                f"these attributes do not go together: {self}",
                where="ForwardType",
                expected="four orders (eight or oblique ones: with projection 'features' and without cascade) and, with "
                f"projection {self.projection!r}, a gate of {', '.join(gates)} and "
                + ("no cascade" if fused else "the step 'own'"),
            )


_FUSED = ForwardType(projection="input", gate="none")

BASES: dict[str, tuple[ForwardType, str]] = {
    "v0": (
        ForwardType(float32_inputs=True),
        "first release: cross-scan, gate, float32 inputs; the release fixes SiLU and a 3x3 convolution with bias",
    ),
    "v0seq": (
        ForwardType(float32_inputs=True),
        "v0 with one kernel call per direction in the release; computes as v0",
    ),
    "v01": (ForwardType(float32_inputs=True), "cross-scan, float32 inputs (mamba_ssm's kernel)"),
    "v02": (ForwardType(float32_inputs=True), "as v01, Triton cross-scan in the release"),
    "v03": (ForwardType(float32_inputs=True), "as v02 with the kernel that returns float32"),
    "v04": (ForwardType(), "cross-scan, inputs as computed"),
    "v05": (
        ForwardType(),
        "as v04 with convolutions instead of einsum in the release; the published v2 models",
    ),
    "v051d": (ForwardType(UNIDIRECTIONAL), "v05, row by row in all four directions"),
    "v052d": (ForwardType(BIDIRECTIONAL), "v05, rows forwards twice and backwards twice"),
    "v052d3": (ForwardType(ROTATED), "v05, rows of the image turned by 0, 90, 180 and 270 degrees"),
    "v052dc": (
        ForwardType(cascade=True),
        "v05, cascade: every row on its own, both ways, then every column of the result, layer norms without parameters"
        " in front of both; as in the release, the backward result of a line is added without being turned round",
    ),
    "v1": (ForwardType(float32_inputs=True), "ChangeMamba: cross-scan, float32 inputs"),
    "v2": (
        ForwardType(float32_inputs=True),
        "cross-scan, float32 inputs; default, fails in VMamba's release",
    ),
    "v3": (ForwardType(), "cross-scan, inputs as computed; the older name of v04"),
    "v31d": (ForwardType(UNIDIRECTIONAL), "ChangeMamba: the older name of v051d"),
    "v32d": (ForwardType(BIDIRECTIONAL), "ChangeMamba: the older name of v052d"),
    "v4": (ForwardType(), "ChangeMamba: the older name of v05"),
    "xv1a": (
        replace(_FUSED, step="shared"),
        "ChangeMamba: convolution, then in_proj gives features, a low-rank step shared by the directions, B and C",
    ),
    "xv2a": (replace(_FUSED, step="full"), "ChangeMamba: as xv1a, in_proj gives the whole step, no dt_proj"),
    "xv3a": (replace(_FUSED, step="own"), "ChangeMamba: as xv1a with a low-rank step for every direction"),
}

_GATED = "v types"
_FUSED_ONLY = "xv types"

SUFFIXES: dict[str, tuple[dict[str, Any], str, str]] = {
    "no32": ({"float32_inputs": False}, "", "no cast of the scan's inputs to float32"),
    "oact": ({"out_activation": True}, _GATED, "GELU behind the out norm"),
    "noz": ({"gate": "none"}, _GATED, "no gate"),
    "nozact": ({"gate": "linear"}, _GATED, "the gate keeps its projection, without activation"),
    "act": ({"out_activation": True}, _FUSED_ONLY, "GELU behind the out norm"),
    "mul": ({"gate": "features"}, _FUSED_ONLY, "the result is multiplied by the scanned features"),
    "onnone": ({"out_norm": "none"}, "", "no out norm"),
    "ondwconv3": ({"out_norm": "dwconv3"}, "", "depth-wise 3x3 convolution as out norm"),
    "oncnorm": ({"out_norm": "layer+dwconv3"}, "", "layer norm, then depth-wise 3x3 convolution"),
    "onsoftmax": ({"out_norm": "softmax"}, "", "softmax over the pixels of every channel as out norm"),
    "onsigmoid": ({"out_norm": "sigmoid"}, "", "sigmoid as out norm"),
}
"""Suffix -> what it sets, which base names take it ("": all), what it means."""

_OLD = {"none": "onnone", "dwconv3": "ondwconv3", "softmax": "onsoftmax", "sigmoid": "onsigmoid"}
"""ChangeMamba's spelling of the out-norm tags."""

_ONE = "|".join(sorted([*SUFFIXES, *_OLD], key=len, reverse=True))
_PATTERN = re.compile(rf"({'|'.join(sorted(BASES, key=len, reverse=True))})((?:_?(?:{_ONE}))*)")


def forward_type(name: str | ForwardType) -> ForwardType:
    """The meaning of an official `forward_type` string; a `ForwardType` is returned as it is.

    Raises:
        InputError: an unknown base or suffix, a suffix that the base does not take, two suffixes that set the same thing.
    """
    if isinstance(name, ForwardType):
        return name
    match = _PATTERN.fullmatch(name)
    if match is None:
        raise _refuse(name, "is not known")
    base, tail = match.groups()
    changes: dict[str, Any] = {}
    for found in re.findall(_ONE, tail):
        settings, takers, _ = SUFFIXES[_OLD.get(found, found)]
        if takers and (takers == _FUSED_ONLY) != base.startswith("x"):
            raise _refuse(name, f"has the suffix {found!r}, which belongs to the {takers}")
        if changes.keys() & settings.keys():
            raise _refuse(name, f"sets {next(iter(settings))} twice")
        changes |= settings
    return replace(BASES[base][0], **changes)


def forward_types() -> list[tuple[str, str]]:
    """The rows of the table of forward types: an official base name or suffix, and what it means."""
    suffixes = [
        (f"_{name}", meaning + (f" ({takers})" if takers else ""))
        for name, (_, takers, meaning) in SUFFIXES.items()
    ]
    return [(name, meaning) for name, (_, meaning) in BASES.items()] + suffixes


def _refuse(name: str, what: str) -> InputError:
    return InputError(
        f"the forward type {name!r} {what}",
        where="forward_type",
        expected=f"one of {', '.join(BASES)}, then any of {', '.join('_' + suffix for suffix in SUFFIXES)}",
        do="'v05_noz' is that of the published models; `python -m anban.ssm.vmamba` explains all",
    )
