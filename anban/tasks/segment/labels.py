"""What the values of the label maps mean, found out over a whole split before anything is trained.

Two silent failures are common. Label files come in two numberings that overlap (the `labelIds` of a data set and the
train ids of its classes), and reading one as the other trains a network on the wrong classes. And a value that is no
class of the network, 255 most of all, is an error deep inside a loss, or a class too many, unless it is declared
ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anban.data.images import LOSSY_SUFFIXES, read_label
from anban.data.scenes import Scene, in_threads
from anban.errors import InputError
from anban.tasks.segment.classes import IGNORE, UNKNOWN, ClassSet, Coding

CodingName = Literal["auto", "label-ids", "train-ids"]

# A share of ignored pixels above which one should know why.
_MUCH = 0.5
# Classes that are named one by one in a message.
_MOST = 12


@dataclass(frozen=True)
class LabelReport:
    """What a split's label maps hold.

    Attributes:
        coding: how their values are to be read.
        values: stored value -> number of pixels, over the whole split.
        shares: class name -> share of the pixels that are not ignored, 0..1.
        ignored: share of all pixels that are ignored, 0..1.
        missing: names of the classes without a pixel.
        unlabelled: names of the scenes whose every pixel is ignored.
        scenes: how many label maps were read.
        warnings: what is accepted but worth knowing.
    """

    coding: Coding
    values: dict[int, int]
    shares: dict[str, float]
    ignored: float
    missing: tuple[str, ...]
    unlabelled: tuple[str, ...]
    scenes: int
    warnings: tuple[str, ...] = ()


def decode_label(values: NDArray[np.uint8], coding: Coding, where: object = None) -> NDArray[np.uint8]:
    """Stored values (H, W) -> class numbers and IGNORE, both uint8 (H, W).

    Raises:
        InputError: a value that the coding does not know; `where` is told as its place.
    """
    numbers: NDArray[np.uint8] = coding.table[values]
    if (numbers == UNKNOWN).any():
        strange = sorted(set(np.unique(values).tolist()) - coding.values)
        raise InputError(
            f"values {_listed(strange)} in a label map of {coding.name}",
            where=where,
            do="the file changed since it was checked",
        )
    return numbers


def read_classes(path: Path, coding: Coding) -> NDArray[np.uint8]:
    """A label map's class numbers and IGNORE, uint8 (H, W); a palette is read by its indices.

    Raises:
        InputError: a file that cannot be read, or holds a value that the coding does not know.
    """
    return decode_label(read_label(path, ordered=False), coding, path)


def sniff_labels(
    scenes: Sequence[Scene], classes: ClassSet, coding: CodingName = "auto", ignore: Iterable[int] = ()
) -> LabelReport:
    """Read every label map of a split and say how it is coded; what could be two things is refused.

    Args:
        scenes: the split.
        classes: the classes that the network is to tell apart.
        coding: "auto", or the coding that the label maps are required to have.
        ignore: further stored values to ignore, besides those that the class set ignores.

    Raises:
        InputError: no labels, a label that cannot be read or is a JPEG, values that fit no coding, or not the one
            required, or two of them; nothing but ignored pixels.
    """
    labelled = [scene for scene in scenes if scene.label is not None]
    paths = [scene.label for scene in labelled if scene.label is not None]
    if not paths:
        raise InputError("no labels to read: the split is empty or unlabelled", expected="at least one label")
    lossy = [path for path in paths if path.suffix.lower() in LOSSY_SUFFIXES]
    if lossy:
        raise InputError(
            "a label map stored as JPEG, which does not keep exact values",
            where=lossy[0],
            expected="class numbers in a PNG",
            do="write the label maps from their source again",
        )

    counts = np.stack(in_threads(_count, paths))
    total = counts.sum(axis=0)
    values = {int(value): int(total[value]) for value in np.flatnonzero(total)}
    found, warnings = _coding(set(values), classes, coding, frozenset(ignore), paths)

    ignored_values = [value for value in values if value in found.ignored]
    counted = int(total.sum() - total[ignored_values].sum())
    if counted == 0:
        raise InputError(
            f"every pixel of the {len(paths)} label maps is ignored; {_seen(values)}",
            where=paths[0].parent,
            expected=f"classes of {classes.name}",
            do="the labels of a test split may not be public: use another split, or set this role to null",
        )
    pixels = np.zeros(len(classes), np.int64)
    for value, number in found.numbers.items():
        pixels[number] += total[value]
    shares = {name: float(n / counted) for name, n in zip(classes.classes, pixels, strict=True)}
    missing = tuple(name for name, n in zip(classes.classes, pixels, strict=True) if n == 0)
    ignored = 1 - counted / float(total.sum())
    empty = counts.sum(axis=1) == counts[:, ignored_values].sum(axis=1)
    unlabelled = tuple(scene.name for scene, nothing in zip(labelled, empty, strict=True) if nothing)

    if missing:
        warnings.append(f"{len(missing)} of {len(classes)} classes have no pixel: {_listed(missing)}")
    if ignored > _MUCH:
        warnings.append(f"{ignored:.1%} of the pixels are ignored")
    if unlabelled:
        warnings.append(f"{len(unlabelled)} scenes hold ignored pixels only, first {unlabelled[0]}")
    return LabelReport(found, values, shares, ignored, missing, unlabelled, len(paths), tuple(warnings))


def _count(path: Path) -> NDArray[np.int64]:
    return np.bincount(read_label(path, ordered=False).ravel(), minlength=256)


def _coding(
    values: set[int], classes: ClassSet, wanted: CodingName, ignore: frozenset[int], paths: Sequence[Path]
) -> tuple[Coding, list[str]]:
    """The coding that the values have, and what is to be said about it."""
    codings = {coding.name: coding.ignoring(ignore) for coding in classes.codings}
    fitting = [coding for coding in codings.values() if values <= coding.values]
    where, seen = paths[0].parent, _seen(values)
    if wanted != "auto" and wanted not in codings:
        raise InputError(
            f"the class set {classes.name} has no {wanted}",
            where="data.labels",
            expected=" or ".join(["auto", *codings]),
        )
    if not fitting:
        raise _unfit(values, classes, list(codings.values()), where)
    if wanted != "auto":
        if codings[wanted] not in fitting:
            strange = sorted(values - codings[wanted].values)
            raise InputError(
                f"the labels hold {fitting[0].name}, not {wanted}; not among these: {_listed(strange)}; {seen}",
                where=where,
                expected=f"{wanted} of {classes.name}",
                do=f"set data.labels to {fitting[0].name} or auto",
            )
        if len(fitting) > 1:
            return codings[wanted], [
                f"no value tells {wanted} from {_other(fitting, wanted)}; read as {wanted}"
            ]
        return codings[wanted], []
    if len(fitting) == 1:
        return fitting[0], []
    named = {coding.name for coding in fitting if all(_written(path) == coding.name for path in paths)}
    if len(named) == 1:
        return codings[named.pop()], []
    raise InputError(
        f"the labels could be {' or '.join(c.name for c in fitting)}: no value tells them apart; {seen}",
        where=where,
        do=f"set data.labels to {' or '.join(c.name for c in fitting)}",
    )


def _other(codings: Iterable[Coding], name: str) -> str:
    return next(coding.name for coding in codings if coding.name != name)


def _written(path: Path) -> str | None:
    """The coding that a file's name claims."""
    if path.stem.endswith("labelTrainIds"):
        return "train-ids"
    return "label-ids" if path.stem.endswith("labelIds") else None


def _unfit(values: set[int], classes: ClassSet, codings: Sequence[Coding], where: Path) -> InputError:
    """Why values fit no coding: of the codings the one that explains most of them is compared."""
    nearest = min(codings, key=lambda coding: len(values - coding.values))
    strange = sorted(values - nearest.values)
    count = len(classes)
    if strange == [IGNORE]:
        do = (
            "set data.ignore to [255] if it means no class; as a class it would need a number below the count"
        )
    elif len(strange) == 1 and strange[0] == count:
        do = (
            f"set data.ignore to [{count}] if it means no class, or data.classes to a set with one class more"
        )
    elif len(values) > count and nearest.name == "train-ids":
        do = "set data.classes to the set these labels were made for"
    else:
        do = "set data.classes and data.ignore to what these labels were made with"
    known = f", ignored {_listed(sorted(nearest.ignored))}" if nearest.ignored else ", nothing ignored"
    numbers = sorted(nearest.numbers)
    return InputError(
        f"values that are neither a class nor ignored: {_listed(strange)}; {_seen(values)}",
        where=where,
        expected=f"{nearest.name} of {classes.name}: {numbers[0]}..{numbers[-1]}{known}",
        do=do,
    )


def _seen(values: Iterable[int]) -> str:
    return f"values seen: {_listed(sorted(values), 24)}"


def _listed(items: Sequence[object], most: int = _MOST) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more
