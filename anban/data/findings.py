"""What is wrong with a folder of scenes, collected instead of raised: what the doctors of several tasks look for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from anban.data.images import read_rgb
from anban.data.scenes import ROLES, S, Scene, check_headers, common_size, in_threads, overlaps
from anban.errors import InputError

_MOST = 20  # findings of one kind per split; the rest is counted


class Findings(list[dict[str, Any]]):
    """What was found, in order: `level` "error" | "warning" | "note", `what`, `where`, `do`."""

    def add(
        self,
        level: Literal["error", "warning", "note"],
        what: str,
        where: object = None,
        do: str | None = None,
    ) -> None:
        where = None if where is None else str(where)
        self.append({"level": level, "what": what, "where": where, "do": do})

    def refused(self, error: InputError, prefix: str = "") -> None:
        """Add what training would refuse."""
        expected = f" (expected: {error.expected})" if error.expected else ""
        self.add("error", prefix + error.what + expected, error.where, error.do)


def examine(root: str | Path, look: Callable[[dict[str, Any], Findings], None]) -> dict[str, Any]:
    """The report of a doctor.

    Args:
        root: the data set's folder.
        look: fills `layout`, `splits` and `data` of the report and adds to the findings; an error that it raises
            becomes the last finding.

    Returns:
        `root`, `layout` (or None), `splits` (name -> its summary), `data` (the recipe section that would read this
        folder, None if its layout is unknown), `findings` and `ok` (none of them an error).
    """
    findings = Findings()
    report: dict[str, Any] = {
        "root": str(Path(root).expanduser().absolute()),
        "layout": None,
        "splits": {},
        "data": None,
    }
    try:
        look(report, findings)
    except InputError as error:
        findings.refused(error)
    except OSError as error:
        findings.add("error", f"the folder cannot be read ({error})", root, "check permissions")
    ok = not any(finding["level"] == "error" for finding in findings)
    return report | {"findings": list(findings), "ok": ok}


def readable(
    split: str, scenes: Sequence[S], problems: Sequence[InputError], root: Path, findings: Findings
) -> list[S]:
    """Those scenes of a split whose every picture can be decoded; what is wrong with the others is added.

    Args:
        split: its name.
        scenes: those that are complete.
        problems: what is wrong with those that are not.
        root: the data set's folder.
        findings: are added to.
    """

    def damage(scene: S) -> InputError | None:
        try:
            for picture in scene.pictures:
                read_rgb(picture)
        except InputError as error:
            return error
        return None

    sized, unfit = check_headers(scenes)
    decoded = in_threads(damage, sized)
    damaged = [error for error in decoded if error is not None]
    for kind in (problems, unfit, damaged):
        for error in kind[:_MOST]:
            findings.refused(error)
        if len(kind) > _MOST:
            more = f"{len(kind) - _MOST} more files like these in split '{split}'"
            findings.add("error", more, root, "mend those above and look again")
    fit = [scene for scene, error in zip(sized, decoded, strict=True) if error is None]
    if fit and common_size(fit) == "mixed":
        do = "crop or tile for training; evaluation predicts one scene at a time"
        findings.add("note", f"split '{split}': scenes of different sizes", fit[0].pictures[0].parent, do)
    return fit


def shared_scenes(splits: Mapping[str, Sequence[Scene]], noun: str, findings: Findings) -> None:
    """Add which splits share pictures; `noun` is what the task calls its scenes."""
    shared: dict[tuple[str, str], list[tuple[str, Path]]] = {}
    for first, second, name, path in overlaps(splits):
        shared.setdefault((first, second), []).append((name, path))
    for (first, second), files in shared.items():
        leak = "; the score on it is not a score on unseen pictures" if first == "train" else ""
        what = f"splits '{first}' and '{second}' share {len(files)} {noun}, first {files[0][0]}{leak}"
        findings.add("error", what, files[0][1], f"remove them from '{first}' or '{second}'")


def missing_roles(splits: Collection[str], findings: Findings) -> None:
    """Add which of train, val and test there are not."""
    for role in ROLES:
        if role not in splits:
            do = f"set data.{role} to another split, a list file, or null"
            findings.add("warning", f"no split '{role}'", None, do)
