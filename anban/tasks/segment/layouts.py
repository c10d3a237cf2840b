"""Where the pictures of a segmentation data set and their label maps lie: the layouts people have, found out or named.

| layout | looks like |
| --- | --- |
| `cityscapes` | `leftImg8bit/<split>/<city>/*_leftImg8bit.png`, `gtFine/<split>/<city>/*_gtFine_labelIds.png` |
| `camvid` | `train trainannot val valannot test testannot`, as in SegNet's tutorial |
| `voc` | `JPEGImages SegmentationClass`, splits from `ImageSets/Segmentation/*.txt` |
| `folders` | `images` and `labels` with a folder per split in each, or in a folder per split, or flat (split `all`) |
| `lists` | `train.txt`, `val.txt` ... beside the pictures, each line a picture and its label map |

`folders` is the layout of ADE20K (`annotations/training`) and of COCO-Stuff (`labels/train2017`), too. The lines of a
list are `picture,label` or `picture label`, paths relative to the data folder or to the list; where `images` and
`labels` lie flat, or in a `voc` folder, a line may also be one name. A list is read if the layout is `lists`, if
nothing else is there, or if a split is given as the path of a file that ends in .txt.

A picture and its label map share a stem; `_labelIds` and `_labelTrainIds` beside each other are two codings of one map.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from anban.data.images import SUFFIXES
from anban.data.scenes import Scene, check_headers
from anban.errors import InputError
from anban.tasks.segment.labels import CodingName

LayoutName = Literal["auto", "cityscapes", "camvid", "voc", "folders", "lists"]

_PICTURES = ("images", "image", "imgs", "img")
_LABELS = ("labels", "label", "annotations", "annotation", "masks", "mask", "gt", "stuffthingmaps")
_ALIASES = {
    "training": "train",
    "train2017": "train",
    "valid": "val",
    "validation": "val",
    "val2017": "val",
    "testing": "test",
    "test2017": "test",
}
_ORDER = {"train": 0, "val": 1, "test": 2}
# At the root only these are split lists; a README.txt or a licence lies there too.
_LISTS = re.compile(
    r"(train|training|trainval|val|valid|validation|test|testing)(_set|_list)?", re.IGNORECASE
)
# What the files of one scene add to its stem, and what Cityscapes puts beside its label maps.
_CODED = re.compile(r"(.+?)(?:_gtFine|_gtCoarse)?_(labelIds|labelTrainIds)")
_NO_LABEL = re.compile(r".+_(instanceIds|instanceTrainIds|color)")
_CODINGS = {"labelIds": "label-ids", "labelTrainIds": "train-ids"}


@dataclass(frozen=True)
class Folders:
    """The folder of the pictures and, if there is one, that of the label maps."""

    pictures: Path
    labels: Path | None


@dataclass(frozen=True)
class Layout:
    """What was found under `root`: folders by split ("all" where they have none), and list files by split."""

    kind: str
    root: Path
    folders: dict[str, Folders] = field(default_factory=dict)
    lists: dict[str, Path] = field(default_factory=dict)

    @property
    def splits(self) -> list[str]:
        """Names of the splits: train, val, test first, then others by name."""
        names = set(self.lists or self.folders)
        return sorted(names, key=lambda name: (_ORDER.get(name, len(_ORDER)), name))

    @property
    def labelled(self) -> bool:
        """Whether there are label maps: pictures may also lie alone, or beside another task's annotations."""
        maps = {each.labels for each in self.folders.values() if each.labels is not None}
        return self.kind == "lists" or any(_is_picture(path) for folder in maps for path in folder.rglob("*"))


def find_layout(root: str | Path, layout: LayoutName = "auto") -> Layout:
    """Look at the folders and list files under `root`.

    Raises:
        InputError: no such folder, no known layout, or a layout other than the one named.
    """
    root = Path(root).expanduser().absolute()
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing there"
        raise InputError(
            f"the data folder does not exist ({found})",
            where=root,
            do="set data.root to the data set's folder",
        )
    candidates = _candidates(root)
    if not candidates:
        raise _unknown(root)
    if layout == "auto":
        return candidates[0]
    named = [candidate for candidate in candidates if candidate.kind == layout]
    if not named:
        kinds = " or ".join(f"'{candidate.kind}'" for candidate in candidates)
        raise InputError(
            f"the folder is laid out as {kinds}, not '{layout}'", where=root, do="use layout auto"
        )
    return named[0]


def find_scenes(
    root: str | Path,
    split: str = "all",
    layout: LayoutName = "auto",
    *,
    labels: CodingName | None = "auto",
    headers: bool = True,
) -> list[Scene]:
    """The scenes of a split, sorted by name, all of them there and (by their headers) fit to be read.

    Args:
        root: the data set's folder.
        split: a split's name; "all" where there are none; or the path of a list file.
        layout: how the folder is laid out; "auto" looks.
        labels: which label map to take where a scene has several: that in train ids, or (for "label-ids" and "auto")
            that in label ids. None leaves them out and does not look at them, for prediction.
        headers: False skips opening the files, so sizes and truncation stay unchecked.

    Raises:
        InputError: the first thing found wrong: an unknown layout or split, an empty split or list, a missing or
            doubled file, a picture and a label map of different size, a file that is truncated or not fit to read.
    """
    scenes, problems = scan(find_layout(root, layout), split, labels=labels)
    if not problems and headers:
        scenes, problems = check_headers(scenes)
    if problems:
        raise problems[0]
    return scenes


def scan(
    layout: Layout, split: str, *, labels: CodingName | None = "auto"
) -> tuple[list[Scene], list[InputError]]:
    """The complete scenes of a split, and everything that is wrong with the others; see `find_scenes`.

    Raises:
        InputError: no such split, no label folder, or a list file that cannot be read.
    """
    split = split if split.endswith(".txt") else _split_name(split)
    list_file = _list_file(layout, split)
    if list_file is not None:
        scenes, problems = _from_list(layout, list_file, labels)
        where = list_file
    elif split in layout.folders:
        folders = layout.folders[split]
        scenes, problems = _from_folders(folders, labels, only_labelled=layout.kind == "voc")
        where = folders.pictures
    else:
        raise _no_split(layout, split)
    if not scenes and not problems:
        problems.append(
            InputError(
                "the list is empty" if list_file else f"split '{split}' holds no pictures",
                where=where,
                expected="at least one picture",
                do="fill it, or name another split",
            )
        )
    return sorted(_named_apart(scenes, layout.root), key=lambda scene: scene.name), problems


# Layouts ---------------------------------------------------------------------------------------------------------


def _candidates(root: Path) -> list[Layout]:
    """Every layout that the folder has, the likeliest first."""
    inside = {sub.name.lower(): sub for sub in _subfolders(root)}
    lists = _lists(root)
    found = []
    if "leftimg8bit" in inside:
        folders = _by_split(inside["leftimg8bit"], inside.get("gtfine"))
        found.append(Layout("cityscapes", root, folders))
    if "jpegimages" in inside:
        flat = {"all": Folders(inside["jpegimages"], inside.get("segmentationclass"))}
        sets = root / "ImageSets" / "Segmentation"
        found.append(Layout("voc", root, flat, {path.stem: path for path in sorted(sets.glob("*.txt"))}))
    annotated = [name for name in inside if f"{name}annot" in inside]
    if annotated:
        found.append(
            Layout(
                "camvid", root, {_split_name(n): Folders(inside[n], inside[f"{n}annot"]) for n in annotated}
            )
        )
    folders = _plain(root)
    if folders:
        only_flat = list(folders) == ["all"]
        found.append(Layout("folders", root, folders, lists if only_flat else {}))
    if lists:
        found.append(Layout("lists", root, folders, lists))
    return found


def _plain(root: Path) -> dict[str, Folders]:
    """`images` and `labels` at the root, with or without splits inside; else in a folder per split."""
    pictures, labels = _pair(root)
    if pictures is not None:
        return _by_split(pictures, labels)
    by_split = {}
    for sub in _subfolders(root):
        pictures, labels = _pair(sub)
        if pictures is not None:
            by_split[_split_name(sub.name)] = Folders(pictures, labels)
    return by_split


def _pair(folder: Path) -> tuple[Path | None, Path | None]:
    """The folders of pictures and of label maps directly inside `folder`, where there are such."""
    inside = {sub.name.lower(): sub for sub in _subfolders(folder)}
    found: list[Path | None] = []
    for names in (_PICTURES, _LABELS):
        several = [inside[name] for name in names if name in inside]
        if len(several) > 1:  # COCO keeps boxes in JSON beside its label maps
            several = [path for path in several if any(map(_is_picture, path.rglob("*")))]
        if len(several) > 1:
            raise InputError(
                f"more than one candidate: {', '.join(path.name for path in several)}",
                where=folder,
                expected="one folder of pictures and one of label maps",
                do="move the others away",
            )
        found.append(several[0] if several else None)
    return found[0], found[1]


def _by_split(pictures: Path, labels: Path | None) -> dict[str, Folders]:
    """The folders inside a folder of pictures are splits, unless pictures lie there directly."""
    inside = _subfolders(pictures)
    if not inside or any(_is_picture(path) for path in pictures.iterdir()):
        return {"all": Folders(pictures, labels)}
    found = {}
    for sub in inside:
        beside = labels / sub.name if labels is not None else None
        found[_split_name(sub.name)] = Folders(
            sub, beside if beside is not None and beside.is_dir() else None
        )
    return found


def _subfolders(folder: Path) -> list[Path]:
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def _split_name(name: str) -> str:
    name = re.sub(r"_(set|list)$", "", name, flags=re.IGNORECASE)
    return _ALIASES.get(name.lower(), name.lower() if name.lower() in _ORDER else name)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


# Folders ---------------------------------------------------------------------------------------------------------


def _from_folders(
    folders: Folders, labels: CodingName | None, *, only_labelled: bool = False
) -> tuple[list[Scene], list[InputError]]:
    """The scenes of a folder of pictures; `only_labelled` where most pictures serve other tasks."""
    pictures, problems = _pictures(folders.pictures)
    if labels is None:
        return [Scene(path.name, (path,), None) for path in pictures.values()], problems
    if folders.labels is None:
        raise InputError(
            f"no label folder for {folders.pictures.name}",
            where=folders.pictures,
            expected="label maps beside the pictures",
            do="add the labels; prediction alone needs none",
        )
    maps, doubled = _label_maps(folders.labels, labels)
    problems += doubled
    wanted = set(maps) if only_labelled else set(pictures) | set(maps)
    for role, found, folder in (
        ("pictures", pictures, folders.pictures),
        ("label maps", maps, folders.labels),
    ):
        absent = sorted(wanted - set(found))
        if absent:
            counts = f"{len(pictures)} pictures, {len(maps)} label maps"
            problems.append(
                InputError(
                    f"missing {role}: {len(absent)} of {len(wanted)}, first '{absent[0]}' ({counts})",
                    where=folder,
                    expected="a picture and a label map of the same stem",
                    do="copy the missing files, or remove their partners",
                )
            )
    both = wanted & set(pictures) & set(maps)
    return [Scene(pictures[stem].name, (pictures[stem],), maps[stem]) for stem in both], problems


def _pictures(folder: Path) -> tuple[dict[str, Path], list[InputError]]:
    """The pictures below a folder by stem, and an error for every stem that two of them share."""
    files: dict[str, Path] = {}
    problems = []
    for path in sorted(folder.rglob("*")):
        if _is_picture(path):
            other = files.setdefault(path.stem.removesuffix("_leftImg8bit"), path)
            if other != path:
                problems.append(_doubled(folder, other, path))
    return files, problems


def _label_maps(folder: Path, labels: CodingName) -> tuple[dict[str, Path], list[InputError]]:
    """The label maps below a folder by the stem of their pictures, one of each."""
    found: dict[str, dict[str, Path]] = {}
    problems = []
    for path in sorted(folder.rglob("*")):
        if not _is_picture(path) or _NO_LABEL.fullmatch(path.stem):
            continue
        coded = _CODED.fullmatch(path.stem)
        stem, coding = (coded[1], _CODINGS[coded[2]]) if coded else (path.stem, "label-ids")
        other = found.setdefault(stem, {}).setdefault(coding, path)
        if other != path:
            problems.append(_doubled(folder, other, path))
    first = "train-ids" if labels == "train-ids" else "label-ids"
    return {stem: maps.get(first) or next(iter(maps.values())) for stem, maps in found.items()}, problems


def _doubled(folder: Path, first: Path, second: Path) -> InputError:
    return InputError(
        f"duplicated name: {first.relative_to(folder)} and {second.relative_to(folder)} would be one scene's",
        where=folder,
        expected="one file per name",
        do="remove one of them",
    )


# Lists -----------------------------------------------------------------------------------------------------------


def _lists(root: Path) -> dict[str, Path]:
    lists: dict[str, Path] = {}
    for path in sorted(root.glob("*.txt")):
        if not _LISTS.fullmatch(path.stem):
            continue
        other = lists.setdefault(_split_name(path.stem), path)
        if other != path:
            raise InputError(
                f"two lists for split '{_split_name(path.stem)}': {other.name} and {path.name}",
                where=root,
                do="keep one of them",
            )
    return lists


def _list_file(layout: Layout, split: str) -> Path | None:
    """The list of a split, or the one that `split` is the path of, relative to the data or to the current folder."""
    if not split.endswith(".txt"):
        return layout.lists.get(split)
    for path in (layout.root / Path(split).expanduser(), Path(split).expanduser()):
        if path.is_file():
            return path
    raise InputError(
        "no such list file",
        where=split,
        expected=f"a file under {layout.root} or a path",
        do="check data's split names",
    )


def _from_list(
    layout: Layout, list_file: Path, labels: CodingName | None
) -> tuple[list[Scene], list[InputError]]:
    """The scenes that a list names, by two paths each or by one name."""
    lines = _read_list(list_file)
    problems = []
    repeated = [line for line, times in Counter(lines).items() if times > 1]
    if repeated:
        problems.append(
            InputError(
                f"repeated lines in the list: {len(repeated)}, first '{repeated[0]}'",
                where=list_file,
                expected="every scene once",
                do="remove the repeated lines",
            )
        )
    rows = [_fields(line, list_file) for line in dict.fromkeys(lines)]
    if all(len(row) == 1 for row in rows) and "all" in layout.folders:
        scenes, absent = _by_name(layout.folders["all"], [row[0] for row in rows], labels)
        if absent:
            problems.append(
                InputError(
                    f"the list names scenes that are missing: {len(absent)}, first '{absent[0]}'",
                    where=list_file,
                    expected="pictures and label maps of these names",
                    do="copy the missing files, or take the names off the list",
                )
            )
        return scenes, problems

    scenes, absent = [], []
    for row in rows:
        files = [_resolved(name, layout.root, list_file) for name in row]
        absent += [name for name, path in zip(row, files, strict=True) if path is None]
        picture, label = files[0], files[1] if len(files) > 1 else None
        if labels is not None and len(row) == 1:
            raise InputError(
                f"a line without a label map: {row[0]}",
                where=list_file,
                expected="a picture and a label map, as 'picture,label' or 'picture label'",
            )
        if label is not None and _NO_LABEL.fullmatch(label.stem):
            raise InputError(
                f"not a map of classes: {label.name}",
                where=list_file,
                expected="*_labelIds.png or *_labelTrainIds.png",
                do="name those in the list",
            )
        if picture is not None and (label is not None or labels is None):
            scenes.append(Scene(picture.name, (picture,), label if labels is not None else None))
    if absent:
        problems.append(
            InputError(
                f"the list names files that are missing: {len(absent)}, first '{absent[0]}'",
                where=list_file,
                expected=f"paths relative to {layout.root} or to the list",
                do="copy the files, or mend the paths in the list",
            )
        )
    return scenes, problems


def _by_name(
    folders: Folders, names: Iterable[str], labels: CodingName | None
) -> tuple[list[Scene], list[str]]:
    """The scenes of a flat folder under these names, with or without the extension, and the names not found."""
    found, _ = _from_folders(folders, labels, only_labelled=labels is not None)
    by_stem = {scene.pictures[0].stem: scene for scene in found}
    stems = [Path(name).stem if _is_picture(Path(name)) else name for name in names]
    return [by_stem[stem] for stem in stems if stem in by_stem], [s for s in stems if s not in by_stem]


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError("the list is not UTF-8 text", where=path, expected="one scene per line") from None
    return [line.strip() for line in lines if line.strip()]


def _fields(line: str, list_file: Path) -> list[str]:
    fields = [part.strip() for part in (line.split(",") if "," in line else line.split())]
    if len(fields) > 2 or not all(fields):
        raise InputError(
            f"a line that is not understood: {line}",
            where=list_file,
            expected="'picture,label' or 'picture label'; with a comma, names may hold blanks",
        )
    return fields


def _resolved(name: str, root: Path, list_file: Path) -> Path | None:
    return next((path for path in (root / name, list_file.parent / name) if path.is_file()), None)


def _named_apart(scenes: list[Scene], root: Path) -> list[Scene]:
    """File names, or where two scenes share one the paths below `root` with their parts joined."""
    times = Counter(scene.name for scene in scenes)
    if max(times.values(), default=0) < 2:
        return scenes

    def name(path: Path) -> str:
        return "_".join(path.relative_to(root).parts if path.is_relative_to(root) else path.parts[1:])

    return [replace(scene, name=name(scene.pictures[0])) for scene in scenes]


# Refusals --------------------------------------------------------------------------------------------------------


def _no_split(layout: Layout, split: str) -> InputError:
    found = layout.splits
    if found == ["all"]:
        return InputError(
            f"no split '{split}': the folder has no splits",
            where=layout.root,
            expected="split 'all'",
            do=f"write {split}.txt with one scene per line, or use split 'all'",
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
    inside = _subfolders(root)
    nested = next((sub for sub in _nested(root) if _candidates(sub)), None)
    names = ", ".join(sub.name for sub in inside[:8]) + (" ..." if len(inside) > 8 else "")
    return InputError(
        f"no known layout; folders found: {names or 'none'}",
        where=root,
        expected="leftImg8bit and gtFine, JPEGImages and SegmentationClass, train and trainannot, images and labels "
        "(or annotations), or lists train.txt and val.txt",
        do=f"set data.root to {nested}"
        if nested
        else "rename the folders, or set data.root to the folder that holds them",
    )


def _nested(root: Path) -> list[Path]:
    """Folders one and two levels down."""
    first = _subfolders(root)
    return first + [inner for sub in first for inner in _subfolders(sub)]
