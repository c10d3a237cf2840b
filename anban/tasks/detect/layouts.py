"""Where the annotations and pictures of a data set lie. Links are followed.

coco  annotations/<split>.json (instances_<split>.json; also in coco_json/ or beside them, then at the root itself), pictures in
      <split>/, images/<split>/, images/, JPEGImages/ or at the root
voc   Annotations/*.xml (annotations/), ImageSets/Main/<split>.txt (without it, all files are the split "all"), pictures in
      JPEGImages/ or images/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anban.data.generated import NOTE
from anban.errors import InputError
from anban.recipe.schema import unknown
from anban.tasks.detect.annotations import Annotations, read_coco, read_voc, refuse_twice
from anban.tasks.detect.classes import ClassSet

LayoutName = Literal["auto", "coco", "voc"]


@dataclass(frozen=True)
class Layout:
    """A data set's folder.

    Attributes:
        kind: coco or voc.
        root: the folder.
        files: split -> its json, or its list of names; None where there is no list and all xml files are meant.
    """

    kind: Literal["coco", "voc"]
    root: Path
    files: dict[str, Path | None]

    @property
    def splits(self) -> list[str]:
        return list(self.files)


def find_layout(root: str | Path, layout: LayoutName = "auto") -> Layout:
    """How a folder is laid out.

    Raises:
        InputError: it is none of the layouts above, or not the one that is insisted on.
    """
    root = Path(root).expanduser().absolute()
    if not root.is_dir():
        raise InputError("There is no such folder.", where=root)
    found = [each for each in (_coco(root), _voc(root)) if each is not None and layout in ("auto", each.kind)]
    # VOC first: its pictures may have been converted besides.
    found.sort(key=lambda each: each.kind, reverse=True)
    if not found:
        raise InputError(
            "The folder holds no boxes that could be read.",
            where=root,
            expected="COCO: annotations/*.json; VOC: Annotations/*.xml and JPEGImages/",
            do="look into anban/tasks/detect/layouts.py for what is looked for where",
        )
    return found[0]


def read_split(
    layout: Layout,
    split: str,
    classes: ClassSet | None = None,
    *,
    pictures: str | None = None,
    first_pixel: Literal[0, 1] = 0,
) -> Annotations:
    """The annotations of a split.

    Args:
        split: its name, or the path of a COCO json file or a VOC list of names, relative to the root.
        classes: insist on these.
        pictures: folder of the pictures, relative to the root; None looks in the usual places.
        first_pixel: see `annotations.read_voc`.

    Raises:
        InputError: no such split, or files that cannot be read at all.
    """
    if split.endswith((".json", ".txt")):
        file: Path | None = layout.root / split
    elif split in layout.files:
        file = layout.files[split]
    else:
        raise unknown("split", split, layout.files, str(layout.root))
    if file is not None and not file.is_file():
        raise InputError("There is no such file.", where=file)
    if file is not None and (layout.kind == "coco" or file.suffix == ".json"):
        return read_coco(
            file, _pictures(layout.root, file.stem.removeprefix("instances_"), pictures), classes
        )
    folder = _annotations(layout.root)
    if folder is None:
        raise InputError("There is no folder of xml files.", where=layout.root)
    files = (
        sorted(folder.glob("*.xml")) if file is None else [folder / f"{name}.xml" for name in _names(file)]
    )
    if missing := [each for each in files if not each.is_file()]:
        raise InputError(f"{len(missing)} listed files are missing, first {missing[0].name}", where=file,
                         expected=f"names of xml files in {folder}")  # fmt: skip
    return read_voc(files, _pictures(layout.root, split, pictures), classes, first_pixel)


def _coco(root: Path) -> Layout | None:
    files: dict[str, Path | None] = {}
    for folder in (root / "annotations", root / "coco_json", root):
        for file in sorted(folder.glob("*.json")):
            kind, _, rest = file.stem.partition("_")
            if file.name == NOTE or kind in ("captions", "person", "image", "stuff", "panoptic"):
                continue  # other annotations of COCO
            name = rest if kind == "instances" else file.stem
            files.setdefault("all" if name == "annotations" else name, file)
    return Layout("coco", root, files) if files else None


def _voc(root: Path) -> Layout | None:
    if _annotations(root) is None:
        return None
    files: dict[str, Path | None] = {}
    for file in sorted((root / "ImageSets" / "Main").glob("*.txt")):
        lines = file.read_text(encoding="utf-8").split("\n", 1)[0].split()
        if len(lines) == 1:  # two words a line: whether a class is in the picture
            files[file.stem] = file
    return Layout("voc", root, files or {"all": None})


def _annotations(root: Path) -> Path | None:
    folders = (root / name for name in ("Annotations", "annotations"))
    return next((each for each in folders if next(each.glob("*.xml"), None) is not None), None)


def _names(file: Path) -> list[str]:
    names = file.read_text(encoding="utf-8").split()
    if not names:
        raise InputError("the list is empty", where=file, expected="names of pictures, without a suffix",
                         do="fill it, or name another split")  # fmt: skip
    refuse_twice(names, "name", file)
    return names


def _pictures(root: Path, split: str, given: str | None) -> Path:
    """The folder with the pictures of a split."""
    if given is not None:
        places: Sequence[Path] = [root / given]
    else:
        places = [root / name for name in (split, f"images/{split}", "images", "JPEGImages")]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None and given is not None:
        raise InputError("There is no such folder of pictures.", where=root / given, do="set data.pictures")
    return folder or root
