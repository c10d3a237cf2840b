"""Annotations from one format to the other: `python -m anban.tasks.detect.convert ROOT SPLIT OUT`.

OUT ending in .json: COCO's format; else a folder of xml files as VOC has them. Boxes without area or outside of their picture are
told and left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from anban.errors import InputError
from anban.tasks.detect.annotations import Annotations, Labelled
from anban.tasks.detect.classes import ClassSet
from anban.tasks.detect.layouts import find_layout, read_split


def to_coco(annotations: Annotations) -> dict[str, Any]:
    """What COCO's json says of them; VOC's difficult objects become crowds, which are not scored either."""
    objects: list[dict[str, Any]] = []
    for picture in annotations.pictures:
        for box, label, ignored, area in zip(
            picture.boxes.tolist(), picture.labels, picture.ignored, picture.areas, strict=True
        ):
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": picture.id,
                    "category_id": annotations.classes.ids[label],
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "area": float(area),
                    "iscrowd": int(ignored),
                }
            )
    return {
        "images": [
            {"id": each.id, "file_name": each.name, "height": each.size[0], "width": each.size[1]}
            for each in annotations.pictures
        ],
        "annotations": objects,
        "categories": [
            {"id": number, "name": name}
            for name, number in zip(annotations.classes.names, annotations.classes.ids, strict=True)
        ],
    }


def to_voc(picture: Labelled, classes: ClassSet) -> ElementTree.Element:
    """The xml of a picture, its corners those of areas from 0 (`first_pixel: 0`); crowds become difficult."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = picture.name
    size = ElementTree.SubElement(root, "size")
    for key, value in zip(("height", "width", "depth"), (*picture.size, 3), strict=True):
        ElementTree.SubElement(size, key).text = str(value)
    for box, label, ignored in zip(picture.boxes.tolist(), picture.labels, picture.ignored, strict=True):
        entry = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(entry, "name").text = classes.names[label]
        ElementTree.SubElement(entry, "difficult").text = str(int(ignored))
        corners = ElementTree.SubElement(entry, "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(corners, key).text = f"{value:.9g}"
    return root


def convert(root: Path, split: str, out: Path) -> Annotations:
    """Write a split's annotations in the other format.

    Raises:
        InputError: `out` is there already, or an annotation cannot be read.
    """
    found = read_split(find_layout(root), split)
    if found.problems:
        raise found.problems[0]
    if out.exists():
        raise InputError("There is something already.", where=out, do="name another file or folder")
    if out.suffix == ".json":
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(to_coco(found), ensure_ascii=False), encoding="utf-8")
        return found
    out.mkdir(parents=True)
    for picture in found.pictures:
        tree = ElementTree.ElementTree(to_voc(picture, found.classes))
        ElementTree.indent(tree)
        tree.write(out / f"{Path(picture.name).stem}.xml", encoding="unicode")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python -m anban.tasks.detect.convert ROOT SPLIT OUT")
    try:
        written = convert(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    except InputError as error:
        sys.exit(str(error))
    print(f"{len(written.pictures)} pictures, {len(written.faulty)} faulty boxes left out")
    for fault in written.faulty:
        print(f"  {fault.what}: {fault.where}")
