"""What is wrong with a detection data set, all of it at once, and what its boxes are like, before anybody trains on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anban.data.findings import Findings, examine, missing_roles, shared_scenes
from anban.data.scenes import ROLES, Scene, in_threads
from anban.errors import InputError
from anban.tasks.detect.annotations import Labelled
from anban.tasks.detect.classes import ClassSet, class_set
from anban.tasks.detect.data import read_picture
from anban.tasks.detect.layouts import Layout, find_layout, read_split

SUMMARY = {
    "pictures": ("Pictures", "count"),
    "objects": ("Objects", "count"),
    "ignored": ("Crowd or difficult", "count"),
    "empty": ("Pictures without objects", "count"),
    "size": ("Size", "text"),
    "small": ("Boxes below 32x32 (%)", "percent"),
    "large": ("Boxes from 96x96 (%)", "percent"),
}
"""Key of a split's summary -> its title in a table, and whether it is a count, a text or a share shown in percent."""

_MOST = 20  # findings of one kind per split; the rest is counted


def doctor(root: str | Path, classes: str | Sequence[str] | None = None) -> dict[str, Any]:
    """Look a data folder over; bad data are reported, never raised. Every picture is decoded.

    Args:
        root: the data set's folder.
        classes: insist on these, see `anban.tasks.detect.classes.class_set`; None takes those that the files name.

    Returns:
        `root`, `layout` (or None), `splits` (name -> the keys of `SUMMARY`, and `classes`, class -> objects, `sides`, the
        percentiles 5, 50 and 95 of the root of the boxes' areas in pixels, and `ratios`, those of height over width), `data`, the
        recipe section that would read this folder, `findings` and `ok` (no error found).
    """

    def look(report: dict[str, Any], findings: Findings) -> None:
        layout = find_layout(root)
        report["layout"] = layout.kind
        chosen = class_set(classes) if classes is not None else None
        found: dict[str, list[Labelled]] = {}
        for split in layout.splits:
            try:
                pictures, of_split = _pictures(layout, split, chosen, findings)
            except InputError as error:
                findings.refused(error, f"split '{split}': ")
                continue
            chosen = chosen or of_split
            found[split] = pictures
            report["splits"][split] = _summary(split, pictures, of_split, findings)
        roles = {role: role for role in ROLES if role in found}
        scenes = {
            split: [Scene(each.name, (each.path,), None) for each in found[split]] for split in roles or found
        }
        shared_scenes(scenes, "pictures", findings)
        missing_roles(layout.splits, findings)
        faulty = any(finding["level"] == "error" and "the box (" in finding["what"] for finding in findings)
        report["data"] = {
            "root": report["root"],
            "layout": layout.kind,
            "classes": list(chosen.names) if chosen else None,
            "faulty": "drop" if faulty else "refuse",
            **{role: roles.get(role) for role in ROLES},
        }
        if list(found) == ["all"]:
            report["data"]["train"] = "all"

    return examine(root, look)


def _pictures(
    layout: Layout, split: str, classes: ClassSet | None, findings: Findings
) -> tuple[list[Labelled], ClassSet]:
    """The pictures of a split that can be decoded, and its classes; what is wrong with the others is added."""
    found = read_split(layout, split, classes)

    def damage(each: Labelled) -> InputError | None:
        try:
            read_picture(each)
        except InputError as error:
            return error
        return None

    damaged = in_threads(damage, found.pictures)
    for kind in (found.problems, found.faulty, [error for error in damaged if error is not None]):
        for error in kind[:_MOST]:
            findings.refused(error)
        if len(kind) > _MOST:
            findings.add("error", f"{len(kind) - _MOST} more faults like these in split '{split}'", layout.root,
                         "mend those above and look again")  # fmt: skip
    fit = [each for each, error in zip(found.pictures, damaged, strict=True) if error is None]
    return fit, found.classes


def _summary(split: str, pictures: list[Labelled], classes: ClassSet, findings: Findings) -> dict[str, Any]:
    counted = Counter(int(label) for each in pictures for label in each.labels)
    for number, name in enumerate(classes.names):
        if not counted[number]:
            findings.add("warning", f"split '{split}' has no object of the class '{name}'", None,
                         "it cannot be learnt or scored there")  # fmt: skip
    empty = sum(not len(each.boxes) for each in pictures)
    if empty:
        findings.add("note", f"split '{split}': {empty} pictures have no object", None,
                     "data.empty=false leaves them out of training")  # fmt: skip
    boxes = np.concatenate([each.boxes for each in pictures] or [np.zeros((0, 4), np.float32)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas = np.concatenate([each.areas for each in pictures] or [np.zeros(0)])
    sizes = {each.size for each in pictures}
    return {
        "pictures": len(pictures),
        "objects": len(boxes),
        "ignored": sum(int(each.ignored.sum()) for each in pictures),
        "empty": empty,
        "size": "x".join(map(str, sizes.pop())) if len(sizes) == 1 else "mixed",
        "small": float((areas < 32**2).mean()) if len(areas) else None,
        "large": float((areas >= 96**2).mean()) if len(areas) else None,
        "classes": {name: counted[number] for number, name in enumerate(classes.names)},
        "sides": _percentiles(np.sqrt(widths * heights)),
        "ratios": _percentiles(heights / widths),
    }


def _percentiles(values: np.ndarray) -> list[float] | None:
    return [round(float(each), 2) for each in np.percentile(values, (5, 50, 95))] if len(values) else None
