"""What only all files together tell: files and pictures that are there twice, and leaks between splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from anban.audit.duplicates import Limits, alike, close_pairs, listed_splits, place_of
from anban.audit.finding import Finding
from anban.audit.index import Index
from anban.audit.look import digest

#: Of copies in several splits the one of the test set is kept: a published test set should stay as it is.
_RANK = {"test": 0, "val": 1, "train": 2, None: 3}

Place = Callable[[bytes], tuple[str | None, bool]]


def joint_findings(index: Index, root: bytes, limits: Limits, marks: bool) -> Iterator[tuple[int, Finding]]:
    """(id of a file, finding) of duplicates, near duplicates and leaks, and of `marks` that folders share."""
    if marks:
        yield from index.compared()
    listed = listed_splits(Path(os.fsdecode(root)))

    def place(path: bytes) -> tuple[str | None, bool]:
        return place_of(os.fsdecode(path), listed)

    for files in index.same_size_undigested():
        index.set_digests([(digest(os.path.join(root, path)), number) for number, path in files])
    copies = set()
    for number, finding in _exact(index, place):
        copies.add(number)
        yield number, finding
    yield from _near(index, place, copies, limits)


def _exact(index: Index, place: Place) -> Iterator[tuple[int, Finding]]:
    for group in index.same_digest():
        files = [(number, path) for number, path in group if not _is_label(place(path))]
        # Copies have longer names: "sale copy.jpg", "sale (1).jpg".
        files.sort(key=lambda file: (_RANK[place(file[1])[0]], len(file[1]), file[1]))
        for number, path in files[1:]:
            kept = files[0][1]
            what = f"byte for byte the same as '{os.fsdecode(kept)}'"
            yield from _doubled(number, "duplicate", what, path, kept, place, 1.0)


def _near(index: Index, place: Place, copies: set[int], limits: Limits) -> Iterator[tuple[int, Finding]]:
    numbers, hashes = index.hashed()
    distinct, which = np.unique(hashes, return_inverse=True)
    order = np.argsort(which, kind="stable")
    starts = np.searchsorted(which[order], np.arange(len(distinct) + 1))
    near: dict[int, list[int]] = {int(one): [int(one)] for one in np.flatnonzero(np.diff(starts) > 1)}
    for first, second in close_pairs(distinct, limits.most_bits):
        near.setdefault(first, [first]).append(second)
        near.setdefault(second, [second]).append(first)

    def members(group: int) -> list[int]:
        """Places in `numbers`, the best picture first."""
        return [int(at) for at in order[starts[group] : starts[group + 1]] if int(numbers[at]) not in copies]

    paths = {at: index.path(int(numbers[at])) for group in near for at in members(group)}
    paths = {at: path for at, path in paths.items() if not _is_label(place(path))}
    told: set[int] = set()
    for at in sorted(paths, key=lambda at: (_RANK[place(paths[at])[0]], at)):
        if at in told:
            continue
        own = index.small(int(numbers[at]))
        for other in sorted(each for group in near[int(which[at])] for each in members(group)):
            if other == at or other in told or other not in paths:
                continue
            if not alike(own, index.small(int(numbers[other])), limits):
                continue
            told |= {at, other}
            bits = int(hashes[at] ^ hashes[other]).bit_count()
            what = f"the same picture as '{os.fsdecode(paths[at])}' ({bits} bits of 64 differ)"
            yield from _doubled(
                int(numbers[other]), "near_duplicate", what, paths[other], paths[at], place, 1 - bits / 64
            )


def _is_label(placed: tuple[str | None, bool]) -> bool:
    """A label map of a data set: it may well be the same as another."""
    return placed[0] is not None and placed[1]


def _doubled(
    number: int, problem: str, what: str, path: bytes, kept: bytes, place: Place, score: float
) -> Iterator[tuple[int, Finding]]:
    of = os.fsdecode(kept)
    yield number, Finding(problem, what, round(score, 3), data={"of": of})
    here, there = place(path)[0], place(kept)[0]
    if here and there and here != there:
        leak = f"split {here} shares this picture with split {there}: '{of}'"
        yield number, Finding("split_leak", leak, round(score, 3), data={"of": of, "splits": [here, there]})
