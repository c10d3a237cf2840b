"""Every reader of files that others may have written, with valid files to damage."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import tifffile
import torch
import yaml
from fake_study import DEMO, write_fake_study
from mutate import Edit, damaged, repacked, twisted
from PIL import Image
from pydicom.data import get_testdata_file

from anban.data.images import read_header, read_label, read_rgb
from anban.engine import checkpoint
from anban.errors import InputError
from anban.recipe import load_recipe
from anban.record import Ledger, RunFolder
from anban.report import write_report
from anban.report.records import open_study
from anban.study.compare import compare
from anban.study.quoted import read_quoted
from anban.study.study import load_plan
from anban.tasks.denoise.readers import read_hounsfield, read_tags, sniff_coding
from anban.tasks.detect.annotations import read_coco, read_voc

Damage = Callable[[bytes, Sequence[Edit]], bytes]


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        make: writes valid files into a folder and gives those that are to be damaged.
        read: what is done with one of them.
        damages: the ways to spoil the content.
    """

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], object]
    damages: tuple[Damage, ...] = (damaged,)


# Ways to spoil ----------------------------------------------------------------------------------------------------


def twisted_json(content: bytes, edits: Sequence[Edit]) -> bytes:
    """JSON whose values are of the wrong type or size."""
    return json.dumps(twisted(json.loads(content), edits)).encode()


def twisted_lines(content: bytes, edits: Sequence[Edit]) -> bytes:
    """The same of JSON lines."""
    lines = twisted([json.loads(line) for line in content.splitlines()], edits)
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def twisted_yaml(content: bytes, edits: Sequence[Edit]) -> bytes:
    """The same of YAML."""
    return yaml.safe_dump(twisted(yaml.safe_load(content), edits), allow_unicode=True).encode(
        "utf-8", "surrogatepass"
    )


def twisted_checkpoint(content: bytes, edits: Sequence[Edit]) -> bytes:
    """A checkpoint that torch reads, with wrong things in it."""
    out = io.BytesIO()
    torch.save(twisted(torch.load(io.BytesIO(content), weights_only=True), edits), out)
    return out.getvalue()


# Valid files ------------------------------------------------------------------------------------------------------

RECIPE = b"""\
base: change/demo-fc-siam-diff
title: "A variant"
note: {file: notes.txt, lines: [1, 2]}
model: {width: 4}
loss.dice: {weight: 0.5}
train.epochs: 3
optimizer: {name: adamw, lr: 5e-4}
data: {root: "${oc.env:HOME}/x"}
seed: 3
"""

STUDY = b"""\
title: Does it help?
question: one sentence
base: change/demo-fc-siam-diff
arms:
  wider: {set: {model.width: 32}, expected: {gain: 1.3, over: base, source: table 4}}
  tinycd: {title: TinyCD, recipe: change/demo-tinycd}
set: {train.epochs: 10}
seeds: 2
groups: {CNN: [base, tinycd]}
"""

QUOTED = b"""\
quoted:
  - method: ChangeFormer
    data: LEVIR-CD
    scores: {precision: 92.05, f1: 90.40}
    protocol: 256 px crops
    source: {title: Bandara and Patel 2022, arxiv: "2201.01293", table: 1}
"""

COCO = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": 30, "width": 40},
        {"id": 900, "file_name": "b.png", "height": 30, "width": 40},
    ],
    "annotations": [
        {"id": 3, "image_id": 7, "category_id": 18, "bbox": [1, 2, 10, 20], "area": 150.0, "iscrowd": 0},
        {"id": 41, "image_id": 7, "category_id": 90, "bbox": [0, 0, 40, 30], "iscrowd": 1},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 18, "name": "dog"}],
}

VOC = b"""<?xml version="1.0" encoding="utf-8"?>
<annotation><folder>x</folder><filename>a.png</filename>
<size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>22</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>1.5</xmin><ymin>2</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object></annotation>
"""


def holding(**files: bytes) -> Callable[[Path], list[Path]]:
    """Writes these files; `__` in a name stands for its dot."""

    def make(folder: Path) -> list[Path]:
        paths = {folder / name.replace("__", "."): content for name, content in files.items()}
        for path, content in paths.items():
            path.write_bytes(content)
        return list(paths)

    return make


def pictures() -> dict[str, bytes]:
    """A small picture and a small label in every format that is read."""
    draw = np.random.default_rng(0)
    colours = Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    label = Image.fromarray(draw.integers(0, 3, (9, 12), dtype=np.uint8))
    indexed = label.convert("P")
    indexed.putpalette([0, 0, 0, 90, 90, 90, 255, 255, 255])
    found = {}
    for name, image, kind, options in (
        ("a.png", colours, "PNG", {}),
        ("a.jpg", colours, "JPEG", {}),
        ("a.tif", colours, "TIFF", {"compression": "tiff_lzw"}),
        ("b.tif", label, "TIFF", {}),
        ("a.bmp", colours, "BMP", {}),
        ("label.png", label, "PNG", {}),
        ("indexed.png", indexed, "PNG", {}),
        ("bits.png", label.convert("1"), "PNG", {}),
    ):
        out = io.BytesIO()
        image.save(out, kind, **options)
        found[name] = out.getvalue()
    return found


def slices() -> dict[str, bytes]:
    """A slice in every format of CT data, in Hounsfield units or 1024 above."""
    values = np.random.default_rng(0).integers(-1000, 900, (8, 8))
    found = {"a.dcm": Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()}
    for name, pixels, options in (
        ("a.tif", values.astype(np.int16), {}),
        ("b.tif", values.astype(np.float32), {"compression": "zlib"}),
    ):
        out = io.BytesIO()
        tifffile.imwrite(out, pixels, **options)
        found[name] = out.getvalue()
    out = io.BytesIO()
    np.save(out, values.astype(np.float32))
    found["a.npy"] = out.getvalue()
    out = io.BytesIO()
    Image.fromarray((values + 1024).astype(np.uint16)).save(out, "PNG")
    found["a.png"] = out.getvalue()
    return found


def weights() -> bytes:
    """A checkpoint as runs write them, of a network of one layer."""
    network = torch.nn.Conv2d(3, 2, 3)
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    config = {"task": "change", "seed": 0, "model": {"name": "change/tinycd"}}
    out = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, "recipe": "change/x", "config": config, "step": 3, "score": 0.5,
                "state_dict": state, "modules": {"model": state}, "progress": {"step": 3}}, out)  # fmt: skip
    return out.getvalue()


# What is done with them -------------------------------------------------------------------------------------------


def read_pictures(path: Path) -> None:
    """A file as a picture and as a label, each reader for itself: one may refuse what another takes."""
    for read in (read_header, partial(read_header, label=True), read_rgb, read_label):
        outcome(partial(read, path))


def read_slice(path: Path) -> None:
    """A slice as data and as a file to be recognised."""
    outcome(partial(read_hounsfield, path, "hu"))
    outcome(partial(read_tags if path.suffix == ".dcm" else sniff_coding, path))


def read_runs(path: Path) -> None:
    """A run folder by itself, and the ledger of the folder of runs."""
    ledger = Ledger(path.parents[3])
    outcome(partial(ledger.rebuild))
    ledger.rows(limit=3)
    opened = outcome(partial(RunFolder.open, path.parent))
    if isinstance(opened, RunFolder):
        opened.metrics()
        opened.samples()


def read_ledger(path: Path) -> None:
    """The rows of a ledger that is no longer what it was: a cache, so nothing is refused."""
    Ledger(path.parent).rows()
    for left in path.parent.glob("ledger.sqlite*"):
        left.unlink()


def write_page(path: Path) -> None:
    """The report of the study to which a record belongs, with all but its drawn figures and few resamples."""
    root = next(folder for folder in path.parents if (folder / "studies").is_dir())
    with ExitStack() as stack:
        for name in ("figures.curves", "figures.loss_terms", "figures.differences", "sheets.draw"):
            stack.enter_context(patch(f"anban.report.page.{name}", return_value=None))
        stack.enter_context(patch("anban.report.page.confusion_charts", return_value=[]))
        stack.enter_context(patch("anban.report.records.compare", partial(compare, resamples=20)))
        write_report(root / "studies" / "demo", root / "report")


def outcome(read: Callable[[], Any]) -> Any:
    """What is read, or the refusal."""
    try:
        return read()
    except InputError as error:
        return error


# The readers ------------------------------------------------------------------------------------------------------


def picture_files(folder: Path) -> list[Path]:
    return holding(**{name.replace(".", "__"): content for name, content in pictures().items()})(folder)


def slice_files(folder: Path) -> list[Path]:
    return holding(**{name.replace(".", "__"): content for name, content in slices().items()})(folder)


def annotated(name: str, content: bytes) -> Callable[[Path], list[Path]]:
    """An annotation file beside the pictures that it is about."""

    def make(folder: Path) -> list[Path]:
        for picture in ("a.png", "b.png"):
            Image.new("RGB", (40, 30)).save(folder / picture)
        (folder / name).write_bytes(content)
        return [folder / name]

    return make


def study(folder: Path) -> Path:
    """Two arms of one seed each."""
    return write_fake_study(folder, DEMO[:2], seeds=1, images=3, pictured=1, size=16, steps=6)


def run_file(folder: Path) -> list[Path]:
    study(folder)
    return sorted(folder.glob("change/*/*/run.json"))[:1]


def ledger_file(folder: Path) -> list[Path]:
    study(folder)
    ledger = Ledger(folder)
    ledger.rebuild()
    return [ledger.path]


def records(*names: str) -> Callable[[Path], list[Path]]:
    """The first of every file of a study whose name fits."""

    def make(folder: Path) -> list[Path]:
        study(folder)
        return [sorted(folder.rglob(name))[0] for name in names]

    return make


READERS = {
    "recipe": Reader(
        holding(recipe__yaml=RECIPE), lambda path: load_recipe(str(path)), (damaged, twisted_yaml)
    ),
    "study file": Reader(
        holding(study__yaml=STUDY), lambda path: load_plan(str(path), []), (damaged, twisted_yaml)
    ),
    "quoted numbers": Reader(holding(quoted__yaml=QUOTED), read_quoted, (damaged, twisted_yaml)),
    "checkpoint": Reader(
        holding(best__pt=weights()), checkpoint.load, (damaged, repacked, twisted_checkpoint)
    ),
    "pictures": Reader(picture_files, read_pictures),
    "COCO": Reader(
        annotated("all.json", json.dumps(COCO).encode()),
        lambda path: read_coco(path, path.parent),
        (damaged, twisted_json),
    ),
    "VOC": Reader(annotated("a.xml", VOC), lambda path: read_voc([path], path.parent)),
    "CT slices": Reader(slice_files, read_slice),
    "run.json": Reader(run_file, read_runs, (damaged, twisted_json)),
    "ledger": Reader(ledger_file, read_ledger),
    "study.json": Reader(records("study.json"), lambda path: open_study(path), (damaged, twisted_json)),
    "report, records": Reader(records("run.json", "index.json"), write_page, (damaged, twisted_json)),
    "report, lines": Reader(records("samples.jsonl", "metrics.jsonl"), write_page, (damaged, twisted_lines)),
}
