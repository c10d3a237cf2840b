"""Pairs of a low-dose and a full-dose slice in a folder, whatever they are called.

| layout | looks like |
| --- | --- |
| `lists` | CNCL's: `noisy`, `clean`, and `{train,test}_{noisy,clean}.txt`, in `dataset_division` or beside them |
| `named` | anything else whose files or folders say which dose they are: `quarter_1mm/L067/*.IMA` and `full_1mm/...`, `L067_12_input.npy` and `L067_12_target.npy`, `noisy/1.tif` and `clean/1.tif` |

A pair has one name when the words for the dose are taken out of both paths. DICOM files are paired by patient and
slice number instead, as their names often hold the time of reconstruction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anban.data.scenes import in_threads
from anban.errors import InputError
from anban.tasks.denoise.readers import DICOM, SUFFIXES, read_tags

LOW = frozenset({"low", "quarter", "noisy", "input", "ld", "ldct", "qd"})
FULL = frozenset({"full", "clean", "target", "fd", "ndct", "normal"})
SPLITS = ("train", "val", "test")

_WORDS = re.compile(r"[^_\-. ]+")
_PATIENT = re.compile(r"[A-Za-z]+\d+")


@dataclass(frozen=True)
class Pair:
    """A slice at two doses.

    Attributes:
        name: unique in its data set.
        low, full: its files.
        patient: None where neither names nor tags tell it.
        split: that the folder or a list puts it in; None for none.
        photometric: of its DICOM files; "" for others.
    """

    name: str
    low: Path
    full: Path
    patient: str | None = None
    split: str | None = None
    photometric: str = ""


@dataclass(frozen=True)
class Layout:
    """What a folder holds: the `kind` of layout, its pairs by name, and what is wrong with other files."""

    kind: str
    root: Path
    pairs: list[Pair]
    problems: list[InputError]


def find_layout(root: str | Path) -> Layout:
    """The pairs below a folder.

    Raises:
        InputError: there is no such folder, or nothing in it says that it is low or full dose.
    """
    folder = Path(root).expanduser().absolute()
    if not folder.is_dir():
        raise InputError("There is no such folder.", where=folder, do="set data.root")
    lists = [
        place for place in (folder / "dataset_division", folder) if (place / "train_noisy.txt").is_file()
    ]
    found = _from_lists(folder, lists[0]) if lists else _from_names(folder)
    if not found.pairs and not found.problems:
        raise InputError("There are no slices at two doses here.", where=folder,
                         expected=f"files ({', '.join(SUFFIXES)}) whose names or folders hold one of "
                         f"{', '.join(sorted(LOW))} or of {', '.join(sorted(FULL))}",
                         do="sort them into folders low and full")  # fmt: skip
    return found


def patient_of(parts: Sequence[str]) -> str | None:
    """The patient that a path without its dose tells: letters with a number, as L067, in its last part that has any."""
    for part in reversed(parts):
        for word in _WORDS.findall(part):
            if _PATIENT.fullmatch(word):
                return str(word).upper()
    return None


def _from_lists(root: Path, place: Path) -> Layout:
    pairs, problems = [], []
    for split in SPLITS:
        files = {dose: place / f"{split}_{dose}.txt" for dose in ("noisy", "clean")}
        if not any(file.is_file() for file in files.values()):
            continue
        lines = {dose: _lines(file) for dose, file in files.items()}
        if len(lines["noisy"]) != len(lines["clean"]):
            raise InputError(f"The lists of '{split}' name {len(lines['noisy'])} noisy and {len(lines['clean'])} clean "
                             "slices.", where=place, expected="as many of both, line by line")  # fmt: skip
        for noisy, clean in zip(lines["noisy"], lines["clean"], strict=True):
            low, full = root / "noisy" / noisy, root / "clean" / clean
            missing = [file for file in (low, full) if not file.is_file()]
            if missing:
                problems.append(InputError("A list names a file that is not there.", where=missing[0]))
                continue
            parts = Path(noisy).with_suffix("").parts
            pairs.append(Pair(f"{split}/{'/'.join(parts)}", low, full, patient_of(parts), split))
    return Layout("lists", root, pairs, problems)


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        raise InputError(
            "A list is missing.", where=file, expected="lists of the noisy and of the clean slices"
        )
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


@dataclass(frozen=True)
class _Slice:
    """One file: the name of its pair and whether it is the low dose."""

    path: Path
    name: str
    low: bool
    patient: str | None
    split: str | None
    photometric: str


def _from_names(root: Path) -> Layout:
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    doses = [(path, _without_dose(path.relative_to(root))) for path in files]
    dosed = [(path, *found) for path, found in doses if found is not None]
    problems: list[InputError] = []
    groups: dict[str, list[_Slice]] = {}
    for found in in_threads(_slice, dosed):
        if isinstance(found, InputError):
            problems.append(found)
        else:
            groups.setdefault(found.name, []).append(found)
    pairs = []
    for name, group in sorted(groups.items()):
        low, full = ([each for each in group if each.low == which] for which in (True, False))
        if len(low) == len(full) == 1:
            a, b = low[0], full[0]
            photometric = "/".join(sorted({a.photometric, b.photometric} - {""}))
            pairs.append(Pair(name, a.path, b.path, a.patient, a.split, photometric))
        else:
            problems.append(InputError(
                f"The slice '{name}' has {len(low)} files at low dose and {len(full)} at full dose.",
                where=group[0].path, expected="one of each",
                do="add the other one, or take the slice out; DICOM files are paired by PatientID and InstanceNumber",
            ))  # fmt: skip
    return Layout("named", root, pairs, problems)


def _slice(found: tuple[Path, bool, tuple[str, ...]]) -> _Slice | InputError:
    path, low, parts = found
    split = next((part for part in parts[:-1] if part in SPLITS), None)
    if path.suffix.lower() not in DICOM:
        return _Slice(path, "/".join(parts), low, patient_of(parts), split, "")
    try:
        tags = read_tags(path)
    except InputError as error:
        return error
    name = "/".join(filter(None, (split, tags.patient, f"{tags.number:04d}")))
    return _Slice(path, name, low, tags.patient, split, tags.photometric)


def _without_dose(relative: Path) -> tuple[bool, tuple[str, ...]] | None:
    """Whether a path is of low dose, and its parts without the words that say so; None where it is of neither."""
    parts, words = [], set()
    for part in relative.with_suffix("").parts:
        tokens = _WORDS.findall(part)
        words |= {token.lower() for token in tokens}
        kept = [token for token in tokens if token.lower() not in LOW | FULL]
        if len(kept) == len(tokens):
            parts.append(part)
        elif kept:
            parts.append("_".join(kept))
    if bool(words & LOW) == bool(words & FULL):
        return None
    return bool(words & LOW), tuple(parts)
