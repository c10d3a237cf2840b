"""What is wrong with a segmentation data set, all of it at once, before anybody trains on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anban.data.findings import Findings, examine, missing_roles, readable, shared_scenes
from anban.data.scenes import ROLES, Scene, common_size
from anban.errors import InputError
from anban.tasks.segment.classes import CLASS_SETS, IGNORE, UNKNOWN, ClassSet, class_set
from anban.tasks.segment.labels import sniff_labels
from anban.tasks.segment.layouts import Layout, find_layout, scan

SUMMARY = {
    "scenes": ("Scenes", "count"),
    "size": ("Size", "text"),
    "labels": ("Labels", "text"),
    "classes": ("Classes seen", "count"),
    "ignored": ("Ignored pixels (%)", "percent"),
}
"""Key of a split's summary -> its title in a table, and whether it is a count, a text or a share shown in percent."""

# The class set that a layout stands for.
_USUAL = {"cityscapes": "cityscapes-19", "camvid": "camvid-11", "voc": "voc-21"}


def doctor(root: str | Path, classes: str | int | None = None) -> dict[str, Any]:
    """Look a data folder over; bad data are reported, never raised.

    Every picture is decoded, so on a large set it takes its time.

    Args:
        root: the data set's folder.
        classes: the class set; None takes the one that the layout stands for, or the one that most fits the labels.

    Returns:
        `root`, `layout` (or None), `splits` (name -> `scenes`, `size`, `labels`, `classes`, `ignored`, and
        `shares`, class name -> share of the pixels that are not ignored), `data`, the recipe section that would read
        this folder (None if its layout is unknown), `findings` (list of `level` "error" | "warning" | "note",
        `what`, `where`, `do`) and `ok` (no error found).
    """

    def look(report: dict[str, Any], findings: Findings) -> None:
        layout = find_layout(root)
        report["layout"] = layout.kind
        names = layout.splits
        if not names:
            findings.add("error", "no split found", layout.root, "fill the folders or the lists")
        scenes = {name: _scenes(layout, name, findings) for name in names}
        labelled = {name: found for name, found in scenes.items() if found and found[0].label is not None}
        chosen = class_set(classes) if classes is not None else None
        ignore: list[int] = []
        if chosen is None and labelled:
            chosen, ignore = _guess(layout.kind, labelled, findings)
        for name, found in scenes.items():
            report["splits"][name] = _summary(
                name, found, chosen if name in labelled else None, ignore, findings
            )
        roles = {role: role for role in ROLES if role in scenes}
        # Lists of VOC such as trainval repeat others on purpose.
        shared_scenes({name: scenes[name] for name in roles} or scenes, "pictures", findings)
        if names == ["all"]:
            do = "write train.txt, val.txt and test.txt, one scene per line"
            findings.add("warning", "the folder has no splits, only 'all'", None, do)
        else:
            missing_roles(names, findings)
        codings = {split["labels"] for split in report["splits"].values()} - {None}
        report["data"] = {
            "root": report["root"],
            "layout": layout.kind,
            "classes": chosen and (chosen.name if chosen.name in CLASS_SETS else len(chosen)),
            "ignore": ignore,
            "labels": codings.pop() if len(codings) == 1 else "auto",
            **{role: role if role in labelled else None for role in ROLES},
        }
        if names == ["all"]:
            report["data"]["test"] = "all"

    return examine(root, look)


def _scenes(layout: Layout, split: str, findings: Findings) -> list[Scene]:
    """The scenes of a split that can be read, without labels where the split has none."""
    folders = layout.folders.get(split)
    unlabelled = folders is not None and folders.labels is None
    if unlabelled:
        do = "it can be predicted, not scored"
        findings.add("note", f"split '{split}' has no label maps", folders and folders.pictures, do)
    try:
        scenes, problems = scan(layout, split, labels=None if unlabelled else "auto")
    except InputError as error:
        findings.refused(error)
        return []
    return readable(split, scenes, problems, layout.root, findings)


def _guess(
    kind: str, splits: dict[str, list[Scene]], findings: Findings
) -> tuple[ClassSet | None, list[int]]:
    """The class set that the labels seem to be made for, and the further values to ignore.

    That is the one that the layout stands for; else one whose classes are there for the most part; else as many
    numbered classes as the values need.
    """
    if kind in _USUAL:
        return class_set(_USUAL[kind]), []
    for name in CLASS_SETS:
        for scenes in splits.values():
            try:
                missing = sniff_labels(scenes, class_set(name)).missing
            except InputError:
                continue
            if 2 * len(missing) < len(class_set(name)):
                return class_set(name), []
    values: set[int] = set()
    for scenes in splits.values():
        try:
            values |= set(sniff_labels(scenes, class_set(UNKNOWN), ignore=(UNKNOWN, IGNORE)).values)
        except InputError as error:
            findings.refused(error)
    if not values:
        return None, []
    count = max(2, 1 + max(values - {IGNORE}, default=0))
    ignore = sorted(values & {IGNORE})
    what = f"the labels fit no known class set and are taken for {count} numbered classes"
    do = f"set data.classes to their number, or to one of {', '.join(CLASS_SETS)}"
    where = next(scene.label for scenes in splits.values() for scene in scenes)
    findings.add("warning", what, where and where.parent, do)
    return class_set(min(count, UNKNOWN)), ignore


def _summary(
    split: str, scenes: list[Scene], classes: ClassSet | None, ignore: list[int], findings: Findings
) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "scenes": len(scenes),
        "size": common_size(scenes) if scenes else None,
        **dict.fromkeys(("labels", "classes", "ignored", "shares")),
    }
    if classes is None or not scenes:
        return summary
    try:
        report = sniff_labels(scenes, classes, ignore=ignore)
    except InputError as error:
        findings.refused(error, f"split '{split}': ")
        return summary
    label = scenes[0].label
    for text in report.warnings:
        findings.add("warning", f"split '{split}': {text}", label and label.parent, "look at some label maps")
    return summary | {
        "labels": report.coding.name,
        "classes": len(classes) - len(report.missing),
        "ignored": report.ignored,
        "shares": report.shares,
    }
