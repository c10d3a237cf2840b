"""What is wrong with a change data set, all of it at once, before anybody trains on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anban.data.images import read_rgb
from anban.data.scenes import check_headers, common_size, in_threads, overlaps
from anban.errors import InputError
from anban.tasks.change.labels import sniff_labels
from anban.tasks.change.layouts import Pair, find_layout, scan

SUMMARY = {
    "pairs": ("Pairs", "count"),
    "size": ("Size", "text"),
    "labels": ("Labels", "text"),
    "foreground": ("Changed pixels (%)", "percent"),
    "unchanged": ("Pairs without change", "count"),
}
"""Key of a split's summary -> its title in a table, and whether it is a count, a text or a share shown in percent."""

_MOST = 20  # findings of one kind per split; the rest is counted


def doctor(root: str | Path) -> dict[str, Any]:
    """Look a data folder over; bad data are reported, never raised.

    Every picture is decoded, so on a large set it takes its time.

    Returns:
        `root`, `layout` (or None), `splits` (name -> `pairs`, `size`, `labels`, `foreground`, `unchanged`),
        `findings` (list of `level` "error" | "warning" | "note", `what`, `where`, `do`), `ok` (no error
        found) and `data`, the recipe section that would read this folder (None if its layout is unknown).
    """
    findings: list[dict[str, Any]] = []
    result: dict[str, Any] = {"root": str(Path(root).expanduser().absolute()), "layout": None, "splits": {}}
    try:
        layout = find_layout(root)
        names = layout.splits
        result["layout"] = layout.kind
        if layout.kind != "flat" and not names:
            findings.append(_finding("error", "no split found", layout.root, "fill the folders or the lists"))
        pairs: dict[str, list[Pair]] = {}
        for name in names:
            result["splits"][name], pairs[name] = _look_at(layout, name, findings)
        _across(layout.kind, result["splits"], pairs, findings)
        roles: dict[str, str | None] = {
            role: role if role in names else None for role in ("train", "val", "test")
        }
        if layout.kind == "flat":
            roles["test"] = "all"
        codings = {entry["labels"] for entry in result["splits"].values()} - {None}
        result["data"] = {"root": result["root"], "layout": layout.kind, **roles}
        result["data"]["labels"] = codings.pop() if len(codings) == 1 else "auto"
    except InputError as error:
        findings.append(_from(error))
    except OSError as error:
        findings.append(_finding("error", f"the folder cannot be read ({error})", root, "check permissions"))
    result.setdefault("data", None)
    result["findings"] = findings
    result["ok"] = not any(finding["level"] == "error" for finding in findings)
    return result


def _look_at(layout: Any, name: str, findings: list[dict[str, Any]]) -> tuple[dict[str, Any], list[Pair]]:
    """One split: its summary, and the pairs that can be used."""
    summary: dict[str, Any] = {
        "pairs": 0,
        "size": None,
        "labels": None,
        "foreground": None,
        "unchanged": None,
    }
    try:
        pairs, problems = scan(layout, name)
    except InputError as error:
        findings.append(_from(error))
        return summary, []
    pairs, unfit = check_headers(pairs)

    def damage(pair: Pair) -> InputError | None:
        try:
            read_rgb(pair.a)
            read_rgb(pair.b)
        except InputError as error:
            return error
        return None

    decoded = in_threads(damage, pairs)
    damaged = [error for error in decoded if error is not None]
    pairs = [pair for pair, error in zip(pairs, decoded, strict=True) if error is None]
    for kind in (problems, unfit, damaged):
        findings += [_from(error) for error in kind[:_MOST]]
        if len(kind) > _MOST:
            more = f"{len(kind) - _MOST} more files like these in split '{name}'"
            findings.append(_finding("error", more, layout.root, "mend those above and look again"))
    if not pairs:
        return summary, pairs

    summary |= {"pairs": len(pairs), "size": common_size(pairs)}
    if summary["size"] == "mixed":
        do = "crop or tile for training; evaluation predicts one scene at a time"
        findings.append(_finding("note", f"split '{name}': scenes of different sizes", pairs[0].a.parent, do))
    try:
        report = sniff_labels(pairs, needs_change=name != "all")
    except InputError as error:
        findings.append(_from(error, f"split '{name}': "))
        return summary, pairs
    summary |= {"labels": report.coding, "foreground": report.foreground, "unchanged": len(report.empty)}
    where = pairs[0].label
    for text in report.warnings:
        findings.append(
            _finding("warning", f"split '{name}': {text}", where and where.parent, "look at some labels")
        )
    if report.empty:
        share = f"{len(report.empty)} of {len(pairs)} pairs"
        what = f"split '{name}': {share} have no change, first {report.empty[0]}"
        findings.append(_finding("note", what, where and where.parent, "their F1 is undefined, not 0"))
    return summary, pairs


def _across(
    kind: str, splits: dict[str, dict[str, Any]], pairs: dict[str, list[Pair]], findings: list[dict[str, Any]]
) -> None:
    """What shows only between splits: shared pictures, other codings, missing roles."""
    shared: dict[tuple[str, str], list[tuple[str, Path]]] = {}
    for first, second, name, path in overlaps(pairs):
        shared.setdefault((first, second), []).append((name, path))
    for (first, second), files in shared.items():
        leak = "; the score on it is not a score on unseen pictures" if first == "train" else ""
        what = f"splits '{first}' and '{second}' share {len(files)} pairs, first {files[0][0]}{leak}"
        findings.append(_finding("error", what, files[0][1], f"remove them from '{first}' or '{second}'"))
    codings = {name: entry["labels"] for name, entry in splits.items() if entry["labels"] is not None}
    if "0/1" in codings.values() and set(codings.values()) != {"0/1"}:
        text = ", ".join(f"{name} {coding}" for name, coding in codings.items())
        findings.append(
            _finding("error", f"label coding differs: {text}", None, "write all labels as 0 and 255")
        )
    if kind == "flat":
        do = "write list/train.txt, list/val.txt and list/test.txt, one file name per line"
        findings.append(_finding("warning", "the folder has no splits, only 'all'", None, do))
    else:
        for role in ("train", "val", "test"):
            if role not in splits:
                do = f"set data.{role} to another split, a list file, or null"
                findings.append(_finding("warning", f"no split '{role}'", None, do))


def _from(error: InputError, prefix: str = "") -> dict[str, Any]:
    expected = f" (expected: {error.expected})" if error.expected else ""
    return _finding("error", prefix + error.what + expected, error.where, error.do)


def _finding(level: str, what: str, where: object, do: str | None) -> dict[str, Any]:
    return {"level": level, "what": what, "where": None if where is None else str(where), "do": do}
