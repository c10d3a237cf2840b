"""Objects with boxes, from COCO's json and from VOC's xml; refused rather than guessed where a file is not what it should be.

Boxes are (x1, y1, x2, y2) in pixels from the picture's upper left corner, corners of areas: x2 - x1 is the width.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from anban.data.images import SUFFIXES, read_header
from anban.errors import InputError
from anban.tasks.detect.classes import ClassSet, class_set

_SLACK = 1.0
"""Pixels by which a box may leave its picture; it is cut. Rounding in annotation tools makes for less."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Labelled:
    """A picture and the objects in it.

    Attributes:
        name: of the file.
        path: where it lies.
        size: height and width in pixels.
        boxes: (N, 4), float32.
        labels: numbers of their classes, (N,).
        ignored: which of them neither train nor score: COCO's crowds, VOC's difficult objects.
        areas: of the objects in pixels, at most those of the boxes; by which COCO tells small from large.
        id: COCO's number of the picture.
        faulty: faults of its boxes that were left out.
    """

    name: str
    path: Path
    size: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float64]
    id: int
    faulty: tuple[InputError, ...] = ()


@dataclass
class Annotations:
    """What annotation files hold, and what is wrong with them.

    Attributes:
        problems: faults of files; the pictures concerned are left out.
        faulty: faults of single boxes, which are left out.
    """

    classes: ClassSet
    pictures: list[Labelled] = field(default_factory=list)
    problems: list[InputError] = field(default_factory=list)
    faulty: list[InputError] = field(default_factory=list)


class _Objects:
    """The objects of one picture, as they are read."""

    def __init__(self, size: tuple[int, int], where: str):
        self.size, self.where = size, where
        self.rows: list[tuple[Box, int, bool, float]] = []
        self.faulty: list[InputError] = []

    def add(self, box: Box, label: int, ignored: bool, area: float | None = None) -> None:
        """Add an object, or the fault of its box."""
        height, width = self.size
        x1, y1, x2, y2 = box
        fault = None
        if not all(map(math.isfinite, box)):
            fault = "is no four numbers"
        elif x2 <= x1 or y2 <= y1:
            fault = "has no area"
        elif min(x1, y1) < -_SLACK or x2 > width + _SLACK or y2 > height + _SLACK:
            fault = f"leaves its picture of {width}x{height} pixels"
        else:
            box = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        if fault or box[2] <= box[0] or box[3] <= box[1]:
            corners = ", ".join(f"{value:g}" for value in box)
            self.faulty.append(
                InputError(
                    f"the box ({corners}) {fault or 'lies outside its picture'}",
                    where=self.where,
                    expected="x1 < x2 and y1 < y2 within the picture",
                    do="mend it, or leave such boxes out with data.faulty=drop",
                )
            )
            return
        full = (box[2] - box[0]) * (box[3] - box[1])
        self.rows.append((box, label, ignored, full if area is None else area))

    def labelled(self, path: Path, name: str, number: int) -> Labelled:
        """The picture with what was added."""
        boxes, labels, ignored, areas = zip(*self.rows, strict=True) if self.rows else ((), (), (), ())
        return Labelled(
            name,
            path,
            self.size,
            np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
            np.asarray(labels, dtype=np.int64),
            np.asarray(ignored, dtype=np.bool_),
            np.asarray(areas, dtype=np.float64),
            number,
            tuple(self.faulty),
        )


# COCO -------------------------------------------------------------------------------------------------------------


def read_coco(file: Path, folder: Path, classes: ClassSet | None = None) -> Annotations:
    """The pictures and objects of a COCO json file (cocodataset.org/#format-data), in the order of the file.

    Args:
        folder: where the pictures lie.
        classes: insist on these, told by their names; None takes the file's categories, in the order of their numbers.

    Raises:
        InputError: the file is no such file, is empty, or names its categories twice or by names that are not among the
            classes.
    """
    content = _json(file)
    categories = content["categories"]
    for key in ("id", "name"):
        refuse_twice([category[key] for category in categories], f"category {key}", file)
    if classes is None:
        ordered = sorted(categories, key=lambda category: category["id"])
        names, ids = (tuple(category[key] for category in ordered) for key in ("name", "id"))
        classes = ClassSet(names, ids)
    found = Annotations(classes)
    for key in ("id", "file_name"):
        refuse_twice([picture[key] for picture in content["images"]], f"image {key}", file)
    refuse_twice([e["id"] for e in content["annotations"] if e.get("id") is not None], "annotation id", file)
    numbers = {c["id"]: classes.names.index(c["name"]) for c in categories if c["name"] in classes.names}
    strange = {c["id"]: c["name"] for c in categories if c["name"] not in classes.names}
    of_picture: dict[int, list[Mapping[str, Any]]] = {picture["id"]: [] for picture in content["images"]}
    for each in content["annotations"]:
        where = f"{file}, annotation {each.get('id', '?')}"
        if each["image_id"] not in of_picture:
            found.problems.append(InputError(f"there is no image {each['image_id']}", where=where,
                                             expected="an image_id among the images of the file",
                                             do="list the image, or leave the annotation out"))  # fmt: skip
        elif each["category_id"] not in numbers:
            name = strange.get(each["category_id"], f"category {each['category_id']}")
            found.problems.append(unknown_class(str(name), classes, where))
        else:
            of_picture[each["image_id"]].append(each)
    for picture in content["images"]:
        path = folder / picture["file_name"]
        if not _is_file(path):
            found.problems.append(_missing(path, str(file)))
            continue
        where = f"{file}, image {picture['id']}"
        objects = _Objects((int(picture["height"]), int(picture["width"])), where)
        for each in of_picture[picture["id"]]:
            x, y, width, height = map(float, each["bbox"])
            area = each.get("area")
            objects.add((x, y, x + width, y + height), numbers[each["category_id"]],
                        bool(each.get("iscrowd", 0)), None if area is None else float(area))  # fmt: skip
        found.faulty += objects.faulty
        found.pictures.append(objects.labelled(path, picture["file_name"], int(picture["id"])))
    return found


def _whole(value: Any) -> bool:
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _named(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _number_of_pixels(value: Any) -> bool:
    return isinstance(value, int | float) and 1 <= value < 2**31


def _four(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_real, value))


def _real(value: Any) -> bool:
    return isinstance(value, float) or _whole(value)


_ENTRIES: dict[str, dict[str, Callable[[Any], bool]]] = {
    "images": {"id": _whole, "file_name": _named, "height": _number_of_pixels, "width": _number_of_pixels},
    "annotations": {"image_id": _whole, "category_id": _whole, "bbox": _four},
    "categories": {"id": _whole, "name": _named},
}
"""What entries of a COCO file must have, and whether it can be read."""

_FURTHER: dict[str, Callable[[Any], bool]] = {"id": _whole, "area": _real, "iscrowd": _whole}
"""The same of what annotations may have."""


def _json(file: Path) -> dict[str, Any]:
    def refused(what: str) -> InputError:
        return InputError(what, where=file, expected="a json object with lists of images, annotations and categories",
                          do="export it again, or name another file with data.train, data.val or data.test")  # fmt: skip

    text = file.read_bytes()
    if not text.strip():
        raise refused("the annotation file is empty")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refused(f"no json ({error})") from None
    if not isinstance(content, dict) or any(not isinstance(content.get(key), list) for key in _ENTRIES):
        raise refused("the file is no list of objects")
    for key, needed in _ENTRIES.items():
        for each in content[key]:
            entry = each if isinstance(each, dict) else {}
            wrong = [name for name, fits in needed.items() if not fits(entry.get(name))]
            if key == "annotations":
                wrong += [
                    n for n, fits in _FURTHER.items() if entry.get(n) is not None and not fits(entry[n])
                ]
            if wrong:
                raise InputError(f"an entry of {key} has no {wrong[0]} that could be read: {str(each)[:120]}", where=file,
                                 expected=", ".join(needed), do="mend the entry, or leave it out")  # fmt: skip
    if not content["images"] or not content["categories"]:
        raise refused("the annotation file lists no picture or no class")
    return content


# VOC --------------------------------------------------------------------------------------------------------------


def read_voc(
    files: Sequence[Path], folder: Path, classes: ClassSet | None = None, first_pixel: Literal[0, 1] = 0
) -> Annotations:
    """The pictures and objects of VOC's xml files, one for each picture.

    Args:
        folder: where the pictures lie.
        classes: insist on these; None takes the names that occur, sorted.
        first_pixel: what the files call the first pixel of a row. 1: as in PASCAL VOC, where corners are pixels that belong to
            the box; 0: as most tools write it, corners of areas.
    """
    trees: dict[Path, ElementTree.Element] = {}
    problems = []
    for file in files:
        try:
            trees[file] = _xml(file)
        except InputError as error:
            problems.append(error)
    if classes is None:
        names = {_text(each, "name", file) for file, tree in trees.items() for each in tree.iter("object")}
        if not names and problems:
            raise problems[0]
        if not names:
            raise InputError("no object in any file", where=files[0].parent, expected="objects, whose names are the classes",
                             do="name the classes with data.classes")  # fmt: skip
        classes = class_set(sorted(names))
    found = Annotations(classes, problems=problems)
    described: dict[Path, Path] = {}
    for number, (file, tree) in enumerate(trees.items(), start=1):
        try:
            path = _picture(file, tree, folder)
            if (other := described.setdefault(path, file)) != file:
                raise InputError(f"{other.name} is about the same picture, {path.name}", where=file,
                                 expected="one file for each picture", do="join the two, or mend <filename>")  # fmt: skip
            objects = _Objects(_size(tree, path, file), str(file))
            for each in tree.iter("object"):
                name = _text(each, "name", file)
                if name not in classes.names:
                    raise unknown_class(name, classes, str(file))
                box = each.find("bndbox")
                if box is None:
                    raise InputError(f"the object '{name}' has no bndbox", where=file,
                                     expected="xmin, ymin, xmax and ymax", do="add it, or leave the object out")  # fmt: skip
                x1, y1, x2, y2 = (_number(box, key, file) for key in ("xmin", "ymin", "xmax", "ymax"))
                difficult = (each.findtext("difficult") or "0").strip() == "1"
                objects.add(
                    (x1 - first_pixel, y1 - first_pixel, x2, y2), classes.names.index(name), difficult
                )
        except InputError as error:
            found.problems.append(error)
            continue
        found.faulty += objects.faulty
        found.pictures.append(objects.labelled(path, path.name, number))
    return found


def _xml(file: Path) -> ElementTree.Element:
    """The root of an xml file without entities of its own: these can be made to grow without bound, or to read files."""
    content = file.read_bytes()
    if not content.strip():
        raise InputError("the annotation file is empty", where=file, expected="an xml <annotation>",
                         do="write it again, or take the picture off the list")  # fmt: skip

    def refuse(name: str, *_: object) -> None:
        raise InputError(f"the xml declares the entity '{name}'", where=file, expected="plain xml",
                         do="remove the declaration")  # fmt: skip

    scan = expat.ParserCreate()
    scan.EntityDeclHandler = refuse
    try:
        scan.Parse(content, True)
        return ElementTree.fromstring(content)
    except InputError:
        raise
    except (
        expat.ExpatError,
        ElementTree.ParseError,
        LookupError,
        ValueError,
    ) as error:  # also of unknown encodings
        raise InputError(f"no xml ({error})", where=file, expected="an xml <annotation>",
                         do="write it again, or take the picture off the list") from None  # fmt: skip


def _picture(file: Path, tree: ElementTree.Element, folder: Path) -> Path:
    """The picture that a file is about: the one it names, or the one of its own name."""
    named = folder / (tree.findtext("filename") or file.stem).strip()
    candidates = [named, *(folder / f"{file.stem}{suffix}" for suffix in SUFFIXES)]
    path = next((each for each in candidates if _is_file(each)), None)
    if path is None:
        raise _missing(named, str(file))
    return path


def _size(tree: ElementTree.Element, path: Path, file: Path) -> tuple[int, int]:
    """Height and width as the file says, or where it does not, the picture."""
    given = [tree.findtext(f"size/{side}") or "0" for side in ("height", "width")]
    try:
        height, width = (int(float(side)) for side in given)
    except (ValueError, OverflowError):
        raise InputError(f"<size> has height '{given[0]}' and width '{given[1]}'", where=file, expected="two numbers of pixels",
                         do="mend them, or leave <size> out: the picture has its own") from None  # fmt: skip
    return (height, width) if height and width else read_header(path).size


def _text(element: ElementTree.Element, key: str, file: Path) -> str:
    text = (element.findtext(key) or "").strip()
    if not text:
        raise InputError(f"an <{element.tag}> has no <{key}>", where=file, expected=f"<{key}> with a text",
                         do="add it, or leave the object out")  # fmt: skip
    return text


def _number(element: ElementTree.Element, key: str, file: Path) -> float:
    text = _text(element, key, file)
    try:
        return float(text)
    except ValueError:
        raise InputError(f"<{key}> is '{text}'", where=file, expected="a number", do="mend it") from None


# Both -------------------------------------------------------------------------------------------------------------


def unknown_class(name: str, classes: ClassSet, where: str) -> InputError:
    """The refusal of an object whose class is not among those of the data."""
    return InputError(
        f"'{name}' is none of the classes",
        where=where,
        expected=", ".join(classes.names[:12]) + (" ..." if len(classes) > 12 else ""),
        do="add it to data.classes, or mend the annotation",
    )


def refuse_twice(values: Sequence[Any], what: str, file: Path) -> None:
    """Refuse what a file gives more than once."""
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise InputError(f"the {what} {twice[0]} is given more than once ({len(twice)} such)", where=file,
                         expected=f"every {what} once", do="keep one of them, or tell them apart")  # fmt: skip


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long for one
        return False


def _missing(path: Path, named_in: str) -> InputError:
    return InputError(f"the picture is missing: {path}", where=named_in, expected="every picture that is named",
                      do="copy it there, or set data.pictures to the folder that holds the pictures")  # fmt: skip
