"""What the pictures of a folder tell together: the mark that a shop or an agency has laid over all of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from anban.audit.finding import Finding
from anban.audit.look import Plan
from anban.audit.picture import Picture, TooLarge, Unreadable, read_picture

#: Bits of 64 in which the hashes of pictures differ that count as different here: what copies and frames of a video have
#: in common is no mark.
_DIFFERENT = 16


class Member(NamedTuple):
    """A picture of a folder: its path below the root and the hash of its print."""

    path: bytes
    hash: int


class Folder(NamedTuple):
    """A folder's pictures.

    Attributes:
        state: a fingerprint of them; where it is the same, so are the findings.
    """

    path: bytes
    members: tuple[Member, ...]
    state: str


@dataclass
class Compared:
    """What a comparison has found, by path."""

    folder: Folder
    findings: dict[bytes, Finding] = field(default_factory=dict)


def compare(plan: Plan, folder: Folder) -> Compared:
    """Look for a mark that different pictures of the folder share, and for the pictures that carry it.

    The first pictures that differ enough from each other are compared; if they share a mark, all are looked at again.
    """
    from anban.audit.checks.watermark import carries, shared_marks  # scipy, which the other checks do without

    compared = Compared(folder)
    limits = plan.limits["watermark"]
    chosen = different(folder.members, plan.limits["run"].sample)
    if len(chosen) < limits.pictures:
        return compared
    pictures = [picture for member in chosen if (picture := _read(plan, member.path)) is not None]
    marks = shared_marks(pictures, limits)
    del pictures
    for member in folder.members if marks else ():
        picture = _read(plan, member.path)
        carried = [carries(picture, mark, limits) for mark in marks] if picture else []
        finding = next((each for each in carried if each is not None), None)
        if finding is not None:
            compared.findings[member.path] = finding
    return compared


def different(members: Sequence[Member], most: int) -> list[Member]:
    """At most so many members, each unlike those before it."""
    chosen: list[Member] = []
    for member in members:
        if len(chosen) == most:
            break
        if all((member.hash ^ other.hash).bit_count() >= _DIFFERENT for other in chosen):
            chosen.append(member)
    return chosen


def _read(plan: Plan, path: bytes) -> Picture | None:
    try:
        with open(os.path.join(plan.root, path), "rb") as file:
            return read_picture(file, os.fsdecode(path), plan.limits["picture"])
    except (OSError, Unreadable, TooLarge):  # it has changed since it was looked at
        return None
