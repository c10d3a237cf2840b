"""What is wrong with a change data set, all of it at once, before anybody trains on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anban.data.findings import Findings, examine, missing_roles, readable, shared_scenes
from anban.data.scenes import ROLES, common_size
from anban.errors import InputError
from anban.tasks.change.labels import sniff_labels
from anban.tasks.change.layouts import Layout, Pair, find_layout, scan

SUMMARY = {
    "pairs": ("Pairs", "count"),
    "size": ("Size", "text"),
    "labels": ("Labels", "text"),
    "foreground": ("Changed pixels (%)", "percent"),
    "unchanged": ("Pairs without change", "count"),
}
"""Key of a split's summary -> its title in a table, and whether it is a count, a text or a share shown in percent."""


def doctor(root: str | Path) -> dict[str, Any]:
    """Look a data folder over; bad data are reported, never raised.

    Every picture is decoded, so on a large set it takes its time.

    Returns:
        `root`, `layout` (or None), `splits` (name -> `pairs`, `size`, `labels`, `foreground`, `unchanged`),
        `data`, the recipe section that would read this folder (None if its layout is unknown), `findings` (list of
        `level` "error" | "warning" | "note", `what`, `where`, `do`) and `ok` (no error found).
    """

    def look(report: dict[str, Any], findings: Findings) -> None:
        layout = find_layout(root)
        report["layout"] = layout.kind
        names = layout.splits
        if layout.kind != "flat" and not names:
            findings.add("error", "no split found", layout.root, "fill the folders or the lists")
        pairs: dict[str, list[Pair]] = {}
        for name in names:
            report["splits"][name], pairs[name] = _look_at(layout, name, findings)
        shared_scenes(pairs, "pairs", findings)
        coding = _one_coding(report["splits"], findings)
        roles: dict[str, str | None] = {role: role if role in names else None for role in ROLES}
        if layout.kind == "flat":
            roles["test"] = "all"
            do = "write list/train.txt, list/val.txt and list/test.txt, one file name per line"
            findings.add("warning", "the folder has no splits, only 'all'", None, do)
        else:
            missing_roles(names, findings)
        report["data"] = {"root": report["root"], "layout": layout.kind, **roles, "labels": coding}

    return examine(root, look)


def _look_at(layout: Layout, name: str, findings: Findings) -> tuple[dict[str, Any], list[Pair]]:
    """One split: its summary, and the pairs that can be used."""
    summary: dict[str, Any] = {"pairs": 0, **dict.fromkeys(("size", "labels", "foreground", "unchanged"))}
    try:
        pairs, problems = scan(layout, name)
    except InputError as error:
        findings.refused(error)
        return summary, []
    pairs = readable(name, pairs, problems, layout.root, findings)
    if not pairs:
        return summary, pairs

    summary |= {"pairs": len(pairs), "size": common_size(pairs)}
    try:
        report = sniff_labels(pairs, needs_change=name != "all")
    except InputError as error:
        findings.refused(error, f"split '{name}': ")
        return summary, pairs
    summary |= {"labels": report.coding, "foreground": report.foreground, "unchanged": len(report.empty)}
    where = pairs[0].label and pairs[0].label.parent
    for text in report.warnings:
        findings.add("warning", f"split '{name}': {text}", where, "look at some labels")
    if report.empty:
        share = f"{len(report.empty)} of {len(pairs)} pairs"
        what = f"split '{name}': {share} have no change, first {report.empty[0]}"
        findings.add("note", what, where, "their F1 is undefined, not 0")
    return summary, pairs


def _one_coding(splits: dict[str, dict[str, Any]], findings: Findings) -> str:
    """The coding that all splits share, "auto" where they do not."""
    codings = {name: entry["labels"] for name, entry in splits.items() if entry["labels"] is not None}
    if "0/1" in codings.values() and set(codings.values()) != {"0/1"}:
        text = ", ".join(f"{name} {coding}" for name, coding in codings.items())
        findings.add("error", f"label coding differs: {text}", None, "write all labels as 0 and 255")
    return next(iter(codings.values())) if len(set(codings.values())) == 1 else "auto"
