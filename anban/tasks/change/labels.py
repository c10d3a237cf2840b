"""What the values of the labels mean, found out over a whole split before anything is trained.

The commonest silent failure of change detection is a label read with the wrong coding: 0/1 masks divided by
255 leave a network nothing but background to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anban.data.images import LOSSY_SUFFIXES, read_label
from anban.data.scenes import Scene, in_threads
from anban.errors import InputError

Coding = Literal["auto", "0/1", "0/255", "soft"]

# From this grey value on a pixel of a 0/255 or soft label is change.
THRESHOLD = 128
# How far from 0 and 255 a value of a 0/255 label may lie (LEVIR-CD has a tile with 254).
_NEAR = 8
# A soft label keeps at least this share of its pixels this close to 0 or 255; the rest is blur at borders.
_SOFT_NEAR = 32
_SOFT_SHARE = 0.9
# Up to so many different values outside the ends are taken for class numbers, unless the file is a JPEG.
_CLASSES = 16
# A share of pixels below which they are called rare.
_RARE = 0.001


@dataclass(frozen=True)
class LabelReport:
    """What a split's labels hold.

    Attributes:
        coding: "0/1", "0/255" or "soft".
        values: stored value -> number of pixels, over the whole split.
        foreground: share of pixels that are change, 0..1.
        empty: names of the pairs without a pixel of change.
        pairs: how many labels were read.
        warnings: what is accepted but worth knowing.
    """

    coding: Literal["0/1", "0/255", "soft"]
    values: dict[int, int]
    foreground: float
    empty: tuple[str, ...]
    pairs: int
    warnings: tuple[str, ...] = ()


def decode_label(values: NDArray[np.uint8], coding: str) -> NDArray[np.uint8]:
    """Stored values (H, W) -> 0 no change, 1 change (uint8), under "0/1", "0/255" or "soft"."""
    return (values >= (1 if coding == "0/1" else THRESHOLD)).astype(np.uint8)


def read_change(path: Path, coding: str) -> NDArray[np.uint8]:
    """A label file as 0 no change, 1 change (H, W), uint8.

    Raises:
        InputError: a file that cannot be read, or whose values its coding does not have.
    """
    values = read_label(path)
    if coding == "0/1" and values.max() > 1:
        raise InputError(
            f"value {values.max()} in a 0/1 label", where=path, do="the file changed since it was checked"
        )
    return decode_label(values, coding)


def sniff_labels(
    pairs: Sequence[Scene], coding: Coding = "auto", *, needs_change: bool = True
) -> LabelReport:
    """Read every label of a split and say how change is coded; what could be two things is refused.

    Only 0 and 1: "0/1". Values close to 0 and 255: "0/255", read with a threshold of 128. Values all over the
    range, but most of them near the ends (JPEG, resampled masks): "soft", the same threshold, with a warning.

    Args:
        coding: "auto", or the coding that the labels are required to have.
        needs_change: refuse a split without a single pixel of change (there is nothing to learn or to score).

    Raises:
        InputError: no labels, a label that cannot be read, a coding that is not understood or not the one
            required, or no change at all.
    """
    labels = [pair.label for pair in pairs if pair.label is not None]
    if not labels:
        raise InputError("no labels to read: the split is empty or unlabelled", expected="at least one label")
    counts = np.stack(in_threads(lambda path: np.bincount(read_label(path).ravel(), minlength=256), labels))
    total = counts.sum(axis=0)
    values = {int(value): int(total[value]) for value in np.flatnonzero(total)}
    lossy = any(path.suffix.lower() in LOSSY_SUFFIXES for path in labels)
    where = labels[0].parent

    found, warnings = _coding(values, counts, [path.name for path in labels], lossy, where, coding)
    if set(values) == {0} and needs_change:
        raise InputError(
            f"no change in any of the {len(labels)} labels: every value is 0",
            where=where,
            expected="some pixels of change in a split used for training or testing",
            do="check that the labels belong to this split and were not saved as 8-bit from fractions",
        )
    change = counts[:, 1 if found == "0/1" else THRESHOLD :].sum(axis=1)
    foreground = float(change.sum() / total.sum())
    if foreground == 0 and needs_change:
        raise InputError(
            f"no change: no value reaches the threshold of {THRESHOLD}; {_seen(values)}", where=where
        )
    if foreground > 0.5:
        warnings.append(f"{foreground:.1%} of the pixels are change; are the labels inverted?")
    elif 0 < foreground < _RARE:
        warnings.append(f"only {foreground:.3%} of the pixels are change; a network may well predict none")
    named = [pair.name for pair in pairs if pair.label is not None]
    empty = tuple(name for name, n in zip(named, change, strict=True) if n == 0)
    return LabelReport(found, values, foreground, empty, len(labels), tuple(warnings))


def _coding(
    values: dict[int, int],
    counts: NDArray[np.int64],
    names: list[str],
    lossy: bool,
    where: object,
    required: str,
) -> tuple[Literal["0/1", "0/255", "soft"], list[str]]:
    present = set(values)
    low, high = (
        max((v for v in present if v < THRESHOLD), default=0),
        min((v for v in present if v >= THRESHOLD), default=255),
    )
    at_ends = low <= _NEAR and high >= 255 - _NEAR
    near = sum(n for v, n in values.items() if v <= _SOFT_NEAR or v >= 255 - _SOFT_NEAR) / sum(
        values.values()
    )

    def refuse(reason: str, do: str, expected: str = "0 and 1, or 0 and 255") -> InputError:
        return InputError(f"{reason}; {_seen(values)}", where=where, expected=expected, do=do)

    if present == {0}:
        return ("0/255" if required == "auto" else required), []  # type: ignore[return-value]
    if present <= {0, 1}:
        if required not in ("auto", "0/1"):
            raise refuse(
                f"the labels are coded 0/1, not {required}",
                "set the coding to auto or 0/1",
                f"coding {required}",
            )
        return "0/1", ["0/1 labels stored as JPEG, which does not keep exact values"] if lossy else []
    if required == "0/1":
        raise refuse(
            "the labels are not coded 0/1", "set the coding to auto or 0/255", "only the values 0 and 1"
        )

    ones = counts[:, 1].astype(bool) & ~counts[:, 2:].any(axis=1)
    bright = counts[:, THRESHOLD:].any(axis=1)
    if ones.any() and bright.any() and not lossy:
        first, other = names[int(ones.argmax())], names[int(bright.argmax())]
        shares = f"0/1 in {ones.sum()} files ({first}), 0/255 in {bright.sum()} ({other})"
        raise refuse(f"two codings in one split: {shares}", "write all labels in one coding")
    if present <= {0, 1, 255} and 1 in present and not lossy:
        raise refuse(
            "0, 1 and 255 in one label: 255 may be change or 'ignore'",
            "write change as 255 and nothing else but 0",
        )
    # Many pixels just above 0 in a file that keeps exact values are class numbers, not noise.
    classes = not lossy and sum(values.get(v, 0) for v in range(1, _NEAR + 1)) > _RARE * sum(values.values())
    if at_ends and high in present and not classes:
        if present <= {0, 255} or required == "0/255":
            return "0/255", []
        odd = sum(n for v, n in values.items() if v not in (0, 255))
        return "0/255", [f"{odd} pixels are close to but not 0 or 255; read with a threshold of {THRESHOLD}"]
    if required == "0/255":
        raise refuse(
            "the labels are not coded 0/255",
            "set the coding to auto or soft, if they are soft masks",
            "0 and 255",
        )
    many = len([v for v in present if _NEAR < v < 255 - _NEAR]) > _CLASSES
    soft = near >= _SOFT_SHARE and max(present) >= 255 - _SOFT_NEAR
    if soft and (lossy or many or required == "soft"):
        share = 1 - near
        return "soft", [
            f"soft labels, {share:.2%} of the pixels in between; read with a threshold of {THRESHOLD}"
        ]
    if lossy or many or required == "soft":
        reason = f"not a soft mask: {near:.1%} of the pixels lie near 0 or 255, the largest is {max(present)}"
        raise refuse(
            reason,
            "look at the labels; write 0 no change and 255 change",
            f"at least {_SOFT_SHARE:.0%} near the ends",
        )
    raise refuse(
        "label coding not understood (classes, an ignored value, another scale?)",
        "write 0 no change and 255 change",
    )


def _seen(values: dict[int, int], most: int = 12) -> str:
    shown = ", ".join(str(v) for v in list(values)[:most])
    return f"values seen: {shown}{f' ... {max(values)} ({len(values)} values)' if len(values) > most else ''}"
