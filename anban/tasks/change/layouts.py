"""Where the pairs of a change data set lie: the folder layouts people have, found out or named.

| layout | looks like |
| --- | --- |
| `split-folders` | `train/A train/B train/label`, and so for every other split |
| `split-lists` | the same with `train_set.txt` or `train.txt` beside the folders (as ChangeMamba has it) |
| `lists` | `A B label` and `list/train.txt` ..., one name per line, with or without extension |
| `prefix` | `A B label` with the split in the file name: `train_1.png`, `val_1.png` |
| `flat` | `A B label` and nothing else; the only split is `all` |

The folders may be called A/B, time1/time2, Image1/Image2, T1/T2 or im1/im2 and label, GT, mask or OUT, in any
case. The two dates and the label of a pair share a stem; their extensions may differ.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from anban.data.images import SUFFIXES
from anban.data.scenes import Scene, check_headers
from anban.errors import InputError

LayoutName = Literal["auto", "split-folders", "split-lists", "lists", "prefix", "flat"]

_DATES = (("a", "b"), ("time1", "time2"), ("image1", "image2"), ("t1", "t2"), ("im1", "im2"))
_LABELS = ("label", "labels", "gt", "gt_cd", "mask", "masks", "out")
_SEMANTIC = ("label1", "label2", "gt_t1", "gt_t2")
_ALIASES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
_ORDER = {"train": 0, "val": 1, "test": 2}
# At the root only these are split lists; a README.txt or a licence lies there too.
_ROOT_LIST = re.compile(
    r"(train|training|trainval|val|valid|validation|test|testing|all|demo)(_set|_list)?", re.IGNORECASE
)
_PREFIX = re.compile(r"(train|val|test)[_-]")


@dataclass(frozen=True)
class Pair(Scene):
    """One place at two dates: the first picture earlier, the second later; `name` is the file name of the first."""

    @property
    def a(self) -> Path:
        return self.pictures[0]

    @property
    def b(self) -> Path:
        return self.pictures[1]


@dataclass(frozen=True)
class Folders:
    """The folders of the two dates and, if there is one, of the label."""

    a: Path
    b: Path
    label: Path | None


@dataclass(frozen=True)
class Layout:
    """What was found under `root`: folders directly there (`flat`) or per split, and list files by split."""

    kind: str
    root: Path
    flat: Folders | None = None
    by_split: dict[str, Folders] = field(default_factory=dict)
    lists: dict[str, Path] = field(default_factory=dict)

    @property
    def splits(self) -> list[str]:
        """Names of the splits: train, val, test first, then others by name."""
        if self.kind == "flat":
            names = {"all"}
        elif self.kind == "prefix" and self.flat is not None:
            names = {found[1] for stem in _index(self.flat.a)[0] if (found := _PREFIX.match(stem))}
        else:
            names = set(self.by_split) | set(self.lists)
        return sorted(names, key=lambda name: (_ORDER.get(name, len(_ORDER)), name))


def find_layout(root: str | Path, layout: LayoutName = "auto", *, labels: bool = True) -> Layout:
    """Look at the folders and list files under `root` (file names only for `prefix`); `labels` as in `find_pairs`.

    Raises:
        InputError: no such folder, no known layout, a layout other than the one named, or semantic labels.
    """
    root = Path(root).expanduser().absolute()
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing there"
        raise InputError(
            f"the data folder does not exist ({found})",
            where=root,
            do="set data.root to the data set's folder",
        )
    flat = _folders(root, labels)
    inside = [] if flat else _subfolders(root)
    by_split = {_split_name(sub): got for sub in inside if (got := _folders(sub, labels))}
    lists = _lists(root)
    if flat is None and not by_split:
        raise _unknown(root)

    if flat is not None:
        kind = "lists" if lists else "flat"
        if not lists:
            stems = list(_index(flat.a)[0])
            if stems and all(_PREFIX.match(stem) for stem in stems):
                kind = "prefix"
    else:
        kind = "split-lists" if lists else "split-folders"
    if layout not in ("auto", kind):
        possible = {"lists": bool(flat and lists), "prefix": bool(flat), "flat": bool(flat)}
        possible |= {"split-folders": bool(by_split), "split-lists": bool(by_split and lists)}
        if not possible[layout]:
            raise InputError(
                f"the folder is laid out as '{kind}', not '{layout}'", where=root, do="use layout auto"
            )
        kind = layout
    return Layout(kind, root, flat, by_split, lists if kind in ("lists", "split-lists") else {})


def list_splits(root: str | Path, layout: LayoutName = "auto") -> list[str]:
    """The splits that lie under `root`, train, val, test first; ["all"] where it has none."""
    return find_layout(root, layout).splits


def find_pairs(
    root: str | Path,
    split: str = "all",
    layout: LayoutName = "auto",
    *,
    labels: bool = True,
    headers: bool = True,
) -> list[Pair]:
    """The pairs of a split, sorted by name, all of them there and (by their headers) fit to be read.

    Args:
        root: the data set's folder.
        split: a split's name; "all" for every pair of folders that lie flat; or the path of a list file.
        layout: how the folder is laid out; "auto" looks.
        labels: False leaves them out and does not look at them, for prediction.
        headers: False skips opening the files, so sizes and truncation stay unchecked.

    Raises:
        InputError: the first thing found wrong: an unknown layout or split, an empty split or list, a missing
            or doubled file, dates or label of different size, a file that is truncated or not 8-bit RGB.
    """
    pairs, problems = scan(find_layout(root, layout, labels=labels), split, labels=labels)
    if not problems and headers:
        pairs, problems = check_headers(pairs)
    if problems:
        raise problems[0]
    return pairs


def scan(layout: Layout, split: str, *, labels: bool = True) -> tuple[list[Pair], list[InputError]]:
    """The complete pairs of a split, and everything that is wrong with the others; see `find_pairs`.

    Raises:
        InputError: no such split, or a list file that cannot be read.
    """
    split = split if split.endswith(".txt") else _split_name(Path(split))
    wanted: list[str] | None = None
    list_file = layout.lists.get(split) or _list_file(layout, split)
    if list_file is not None:
        wanted, problems = _read_list(list_file)
        folders = _folders_for_list(layout, split, wanted)
        where: Path = list_file
    else:
        problems = []
        if layout.by_split and split in layout.by_split and layout.kind in ("split-folders", "split-lists"):
            folders = layout.by_split[split]
        elif layout.flat is not None and (
            split == "all" or (layout.kind == "prefix" and split in layout.splits)
        ):
            folders = layout.flat
        else:
            raise _no_split(layout, split)
        where = folders.a.parent
    if labels and folders.label is None:
        raise InputError(
            f"no label folder beside {folders.a.name} and {folders.b.name}",
            where=folders.a.parent,
            expected=f"one of {', '.join(_LABELS)}",
            do="add the labels; prediction alone needs none",
        )

    roles = {"a": folders.a, "b": folders.b}
    if labels and folders.label is not None:
        roles["label"] = folders.label
    files: dict[str, dict[str, Path]] = {}
    for role, folder in roles.items():
        files[role], doubled = _index(folder)
        problems += doubled
    if layout.kind == "prefix" and list_file is None and split != "all":
        files = {
            r: {s: p for s, p in got.items() if re.match(rf"{split}[_-]", s)} for r, got in files.items()
        }
    stems = sorted(set().union(*files.values())) if wanted is None else wanted
    if not stems and not problems:
        message = "the list is empty" if list_file else f"split '{split}' holds no pictures"
        problems.append(
            InputError(
                message, where=where, expected="at least one pair", do="fill it, or name another split"
            )
        )
    problems += _missing(stems, files, roles, list_file)
    complete = [stem for stem in stems if all(stem in found for found in files.values())]
    masks = files.get("label", {})
    pairs = [Pair(files["a"][s].name, (files["a"][s], files["b"][s]), masks.get(s)) for s in complete]
    return sorted(pairs, key=lambda pair: pair.name), problems


def _subfolders(folder: Path) -> list[Path]:
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def _split_name(path: Path) -> str:
    name = re.sub(r"_(set|list)$", "", path.stem if path.suffix == ".txt" else path.name, flags=re.IGNORECASE)
    return _ALIASES.get(name.lower(), name.lower() if name.lower() in _ORDER else name)


def _folders(folder: Path, look_at_labels: bool) -> Folders | None:
    """The date and label folders directly inside `folder`, or None."""
    inside = {sub.name.lower(): sub for sub in _subfolders(folder)}
    dates = [(inside[a], inside[b]) for a, b in _DATES if a in inside and b in inside]
    if not dates:
        return None
    labels = [inside[name] for name in _LABELS if name in inside and look_at_labels]
    semantic = [inside[name].name for name in _SEMANTIC if name in inside and look_at_labels]
    if semantic and not labels:
        raise InputError(
            f"semantic change labels, one class map per date ({', '.join(semantic)}), as in SECOND",
            where=folder,
            expected="one binary label per pair: 0 no change, change otherwise",
            do="this task is binary: write one 'label' folder of 0 and 255 beside them",
        )
    if len(dates) > 1 or len(labels) > 1:
        several = [f"{a.name}/{b.name}" for a, b in dates] if len(dates) > 1 else [x.name for x in labels]
        raise InputError(
            f"more than one candidate: {', '.join(several)}",
            where=folder,
            expected="one pair of date folders and one label folder",
            do="move the others away",
        )
    return Folders(*dates[0], labels[0] if labels else None)


def _lists(root: Path) -> dict[str, Path]:
    found = [path for path in root.glob("*.txt") if _ROOT_LIST.fullmatch(path.stem)]
    for name in ("list", "lists", "List"):
        if (root / name).is_dir():
            found = sorted((root / name).glob("*.txt")) or found
            break
    lists: dict[str, Path] = {}
    for path in sorted(found):
        other = lists.setdefault(_split_name(path), path)
        if other != path:
            raise InputError(
                f"two lists for split '{_split_name(path)}': {other.name} and {path.name}",
                where=path.parent,
                do="keep one of them",
            )
    return lists


def _list_file(layout: Layout, split: str) -> Path | None:
    """The list file that `split` is the path of, relative to the data or to the current folder."""
    if not split.endswith(".txt"):
        return None
    for path in (layout.root / Path(split).expanduser(), Path(split).expanduser()):
        if path.is_file():
            return path
    raise InputError(
        "no such list file",
        where=split,
        expected=f"a file under {layout.root} or a path",
        do="check data's split names",
    )


def _read_list(path: Path) -> tuple[list[str], list[InputError]]:
    """The stems a list names, in order, without repeats, and what is wrong with it."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError("the list is not UTF-8 text", where=path, expected="one name per line") from None
    stems = [_stem(line.strip()) for line in lines if line.strip()]
    repeated = [stem for stem, times in Counter(stems).items() if times > 1]
    problems = []
    if repeated:
        problems.append(
            InputError(
                f"duplicated names in the list: {_some(repeated)}",
                where=path,
                expected="every pair once",
                do="remove the repeated lines",
            )
        )
    return list(dict.fromkeys(stems)), problems


def _folders_for_list(layout: Layout, split: str, wanted: list[str]) -> Folders:
    if layout.flat is not None:
        return layout.flat
    if split in layout.by_split:
        return layout.by_split[split]
    # A list without a folder of its own (val drawn from train): the folder that has most of its names.
    return max(layout.by_split.values(), key=lambda folders: len(set(wanted) & set(_index(folders.a)[0])))


def _stem(name: str) -> str:
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in SUFFIXES else name


def _index(folder: Path) -> tuple[dict[str, Path], list[InputError]]:
    """The pictures of a folder by stem, and an error for every stem that two of them share."""
    files: dict[str, Path] = {}
    problems = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        other = files.setdefault(_stem(path.name), path)
        if other != path:
            problems.append(
                InputError(
                    f"duplicated name: {other.name} and {path.name} would be the same picture",
                    where=folder,
                    expected="one file per name",
                    do="remove one of them",
                )
            )
    return files, problems


def _missing(
    stems: list[str],
    files: dict[str, dict[str, Path]],
    folders: dict[str, Path],
    list_file: Path | None,
) -> list[InputError]:
    counts = ", ".join(f"{folders[role].name} {len(files[role])}" for role in files)
    problems = []
    for role in files:
        absent = [stem for stem in stems if stem not in files[role]]
        if not absent:
            continue
        partner = next((files[r][absent[0]].name for r in files if absent[0] in files[r]), absent[0])
        found = f"{len(absent)} of {len(stems)}"
        if list_file is not None:
            what = f"the list names files missing from {folders[role].name}: {found}, first '{absent[0]}'"
        else:
            what = f"missing partners in {folders[role].name}: {found}, first '{partner}'"
        problems.append(
            InputError(
                f"{what} (files: {counts})",
                where=list_file or folders[role] / partner,
                expected=f"the same names in {', '.join(folder.name for folder in folders.values())}",
                do="copy the missing files"
                + (", or take the names off the list" if list_file else ", or remove their partners"),
            )
        )
    return problems


def _no_split(layout: Layout, split: str) -> InputError:
    found = layout.splits
    if layout.kind == "flat" and layout.flat is not None:
        stems = list(_index(layout.flat.a)[0])
        unprefixed = [stem for stem in stems if not _PREFIX.match(stem)]
        note = ""
        if 0 < len(unprefixed) < len(stems):
            share = f"{len(unprefixed)} of {len(stems)}"
            note = f"; {share} names do not begin with train_, val_ or test_, first '{unprefixed[0]}'"
        return InputError(
            f"no split '{split}': the folder has no splits{note}",
            where=layout.root,
            expected="split 'all'",
            do=f"write list/{split}.txt with one file name per line, or use split 'all'",
        )
    near = difflib.get_close_matches(split, found, n=1)
    return InputError(
        f"no split '{split}'; found: {', '.join(found) or 'none'}",
        where=layout.root,
        expected="one of the splits found, or the path of a list file",
        do=f"did you mean '{near[0]}'?"
        if near
        else f"set data.{split} to one of them"
        if split in _ORDER
        else "name another split",
    )


def _unknown(root: Path) -> InputError:
    names = [sub.name for sub in _subfolders(root)]
    nested = [sub for sub in _subfolders(root) if any(_folders(inner, False) for inner in _subfolders(sub))]
    return InputError(
        f"no known layout; folders found: {_some(names) or 'none'}",
        where=root,
        expected="A B label (or time1 time2 label, Image1 Image2 label, T1 T2 GT, t1 t2 mask, A B OUT), "
        "directly or inside train, val, test",
        do=f"set the root to {nested[0]}"
        if nested
        else "rename the folders, or set the root to the folder that holds them",
    )


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
