"""What is wrong with a denoising data set, all of it at once, before anybody trains on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from anban.data.findings import Findings, examine, missing_roles
from anban.data.scenes import in_threads
from anban.errors import InputError
from anban.tasks.denoise.data import ROLES, DenoiseData, Doses, leaks, patients_of, read_pair, refuse_mixed
from anban.tasks.denoise.layouts import Pair, find_layout

SUMMARY = {
    "slices": ("Slices", "count"),
    "patients": ("Patients", "count"),
    "size": ("Size", "text"),
    "values": ("Values", "text"),
    "noise": ("Noise (HU)", "number"),
}
"""Key of a split's summary -> its title in a table, and whether it is a count, a number or a text."""

_MOST = 20  # findings of one kind; the rest is counted


def doctor(root: str | Path) -> dict[str, Any]:
    """Look a data folder over; bad data are reported, never raised.

    Every slice is read, so on a large set it takes its time.

    Returns:
        `root`, `layout` (or None), `splits` (name -> `slices`, `patients`, `size`, `values` and `noise`, the standard
        deviation of low minus full dose in Hounsfield units), `data`, the recipe section that would read this folder,
        `findings` (list of `level` "error" | "warning" | "note", `what`, `where`, `do`) and `ok` (no error found).
    """

    def look(report: dict[str, Any], findings: Findings) -> None:
        layout = find_layout(root)
        report["layout"] = layout.kind
        _refused(layout.problems, findings)
        try:
            refuse_mixed(layout.pairs)
        except InputError as error:
            findings.refused(error)
        splits = sorted({pair.split for pair in layout.pairs if pair.split}) or ["all"]
        groups = {name: [p for p in layout.pairs if p.split == name or name == "all"] for name in splits}
        data = DenoiseData(str(root))
        for name, pairs in groups.items():
            report["splits"][name] = _summary(pairs, data, findings)
        for text in leaks(groups):
            findings.add("error", text, layout.root, "move the patient to one split")
        unknown = [pair for pair in layout.pairs if pair.patient is None]
        if unknown:
            what = f"the patient of {len(unknown)} slices is not known, first {unknown[0].name}"
            findings.add(
                "warning", what, unknown[0].low, "name them after their patients, as L067_012, to see leaks"
            )
        roles: dict[str, Any] = {role: [role] if role in groups else None for role in ROLES}
        if splits == ["all"]:
            patients = patients_of(layout.pairs)
            told = f"patients {', '.join(patients)}" if patients else "no patients known"
            do = "set data.train, data.val and data.test to patients or to patterns of names"
            findings.add("warning", f"the folder has no splits ({told})", None, do)
            roles["test"] = ["*"]
        else:
            missing_roles(splits, findings)
        report["data"] = {"root": report["root"], **roles}

    return examine(root, look)


def _summary(pairs: Sequence[Pair], data: DenoiseData, findings: Findings) -> dict[str, Any]:
    """One split, of the slices of it that can be read."""
    read = in_threads(lambda pair: _read(pair, data), pairs)
    _refused([found for found in read if isinstance(found, InputError)], findings)
    slices = [found for found in read if isinstance(found, tuple)]
    sizes = {"x".join(map(str, doses.low.shape[1:])) for doses, _ in slices}
    return {
        "slices": len(slices),
        "patients": len(patients_of(pairs)),
        "size": next(iter(sizes)) if len(sizes) == 1 else "mixed" if sizes else None,
        "values": ", ".join(sorted({coding for _, coding in slices})) or None,
        "noise": fmean(float((doses.low - doses.full).std()) for doses, _ in slices) if slices else None,
    }


def _read(pair: Pair, data: DenoiseData) -> tuple[Doses, str] | InputError:
    try:
        codings = data.codings_of(pair)
        return read_pair(pair, codings), codings[0]
    except InputError as error:
        return error


def _refused(errors: Sequence[InputError], findings: Findings) -> None:
    for error in errors[:_MOST]:
        findings.refused(error)
    if len(errors) > _MOST:
        findings.add(
            "error", f"{len(errors) - _MOST} more files like these", None, "mend those above and look again"
        )
