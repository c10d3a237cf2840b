"""Files of others: nothing in them is executed, nothing is written beside what was asked for, nothing grows without bound."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from fake_study import DEMO, edit_json, write_fake_study
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian

from anban.data.browse import Browsed, Item
from anban.data.images import read_rgb
from anban.engine import checkpoint
from anban.errors import InputError
from anban.recipe import load_recipe
from anban.recipe.yamlfile import DEEPEST, parse
from anban.report import browse, write_report
from anban.report.tables import Cell, Column, Row, Table, to_csv
from anban.tasks.denoise.readers import read_hounsfield, read_stored
from anban.tasks.detect.annotations import read_coco, read_voc

SCRIPT = "<script>document.title='taken'</script>"
ATTRIBUTE = "\" onmouseover=\"document.title='taken'"
TEX = r"\input{/etc/passwd} $\frac{$ 50% & #1 ^_~"


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.place),)


# Checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_a_pickle_in_a_checkpoint_does_not_run(form: str, tmp_path: Path) -> None:
    file, place = tmp_path / "best.pt", tmp_path / "ran"
    content = {"format": checkpoint.FORMAT, "state_dict": Payload(place)}
    if form == "bare pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError, match="cannot be read as a checkpoint") as error:
        checkpoint.load(file)
    assert not place.exists()
    assert len(str(error.value).splitlines()) == 4


def test_a_packed_checkpoint_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    good, bomb = tmp_path / "good.pt", tmp_path / "bomb.pt"
    checkpoint.save(good, {"state_dict": {"w": torch.zeros(1_000_000)}})
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(InputError, match="larger than the file"):
        checkpoint.load(bomb)


# Recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["os:system", "subprocess:run", "builtins:eval", "anban.record.environment:subprocess.run",
                "anban.record.environment:subprocess", ".os:system", "anban:os", "pathlib:Path"]
)  # fmt: skip
def test_a_recipe_names_nothing_outside_of_anban(address: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"base: change/demo-fc-siam-diff\noptimizer: {{name: '{address}'}}\n")
    with pytest.raises(InputError, match=r"outside the packages|no class or function|no module"):
        load_recipe(str(file))


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system [id]", "!!python/name:os.system", "!!binary aGk=", "!!set {a}",
            "!!timestamp 2026-01-01", "!!map [1]", "!!bool 3", "!!int {a: 1}", "!mine 3"]
)  # fmt: skip
def test_tags_make_plain_values_or_nothing(tag: str) -> None:
    with pytest.raises(InputError, match="here"):
        parse(f"a: {tag}", "here")


def _laughs(line: str) -> str:
    return "a: &a {k: v}\n" + "".join(
        f"{new}: &{new} {line.format(', '.join([f'*{old}'] * 9))}\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (_laughs("[{}]"), "more than 100000 values"),
        (_laughs("{{<<: [{}]}}"), "more than 100000 values"),
        ("a: &a [*a]", "stands for nothing before it"),
        ("a: " + "[" * 200_000, f"nested more than {DEEPEST} deep"),
        ("- " * 200_000, f"nested more than {DEEPEST} deep"),
        ("a: " + "{b: " * 500 + "}" * 500, f"nested more than {DEEPEST} deep"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("a: 0x" + "f" * 5000, "more than 64 bits"),
    ],
)
def test_what_would_grow_without_bound_is_refused(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        parse(text, "here")


def test_aliases_that_a_person_would_write_are_read() -> None:
    assert parse("a: &a [1, 2]\nb: &b [*a, *a]\nc: *b\nd: &d 3\ne: *d", "here")["c"] == [[1, 2], [1, 2]]


# Data -------------------------------------------------------------------------------------------------------------


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 999))
        + chunk(b"IEND", b"")
    )


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png(100_000, 100_000))
    with pytest.raises(InputError, match="too large to decode at once"):
        read_rgb(tmp_path / "a.png")


def test_a_picture_of_another_format_starts_no_program(tmp_path: Path) -> None:
    postscript = io.BytesIO()
    Image.new("RGB", (4, 4)).save(postscript, "EPS")  # Pillow reads it with Ghostscript
    (tmp_path / "a.png").write_bytes(postscript.getvalue())
    with pytest.raises(InputError, match="not a picture that can be read"):
        read_rgb(tmp_path / "a.png")


def test_an_array_is_no_pickle_and_no_larger_than_its_file(tmp_path: Path) -> None:
    file, place = tmp_path / "a.npy", tmp_path / "ran"
    np.save(file, np.array([Payload(place)], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"Object arrays|Python objects|pickle"):
        read_stored(file)
    file.write_bytes(pickle.dumps(Payload(place)))
    with pytest.raises(InputError, match="damaged"):
        read_stored(file)
    assert not place.exists()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
    with open(file, "wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
    with pytest.raises(InputError, match=r"mmap length is greater than file size|damaged"):
        read_stored(file)


def test_a_slice_of_a_size_that_cannot_be_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, np.zeros((4, 4), np.int16))
    content = file.read_bytes()
    with tifffile.TiffFile(file) as tiff:
        offsets = [tiff.pages[0].tags[name].valueoffset for name in ("ImageWidth", "ImageLength")]
    for offset in offsets:
        content = content[:offset] + struct.pack("<H", 60_000) + content[offset + 2 :]
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"An array of shape \(60000, 60000\)"):
        read_stored(file)
    data = dcmread(str(get_testdata_file("CT_small.dcm")))
    data.Rows = data.Columns = 60_000
    data.save_as(tmp_path / "a.dcm")
    with pytest.raises(InputError, match="An array of shape"):
        read_hounsfield(tmp_path / "a.dcm", "hu")
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(tmp_path / "b.dcm")
    with pytest.raises(InputError, match="deflated"):
        read_hounsfield(tmp_path / "b.dcm", "hu")


@pytest.mark.parametrize(
    "declared",
    [
        '<!ENTITY a "ha"><!ENTITY b "&a;&a;">',
        '<!ENTITY a SYSTEM "file:///etc/passwd">',
        '<!ENTITY % a SYSTEM "x">',
    ],
)
def test_annotations_declare_no_entities(declared: str, tmp_path: Path) -> None:
    file = tmp_path / "a.xml"
    file.write_text(f"<!DOCTYPE annotation [{declared}]><annotation><filename>a.png</filename></annotation>")
    with pytest.raises(InputError, match="declares the entity"):
        read_voc([file], tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' * 100_000])
def test_annotations_nested_without_end_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text(text)
    with pytest.raises(InputError, match="no json"):
        read_coco(tmp_path / "all.json", tmp_path)


# Reports ----------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """The names of a page's elements and attributes, and what its scripts hold."""

    def __init__(self, page: str):
        super().__init__()
        self.scripts: list[str] = []
        self.attributes: set[str] = set()
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.inside = tag == "script"
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts.append(data)
        self.inside = False


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """study.json of runs whose every text is an attack."""
    file = write_fake_study(tmp_path / "runs", DEMO[:2], seeds=2, images=3, pictured=1, size=16, steps=6)
    study = json.loads(file.read_text())
    study |= {"title": SCRIPT, "question": ATTRIBUTE, "id": f"change/{SCRIPT}"}
    for arm in study["arms"]:
        arm["title"] = f"{arm['name']} {SCRIPT}{ATTRIBUTE}{TEX}"
    file.write_text(json.dumps(study))
    for number, path in enumerate(sorted(file.parents[2].glob("change/*/*/run.json"))):
        attack = f"{SCRIPT}{ATTRIBUTE}{TEX}"
        edit_json(path, title=attack, why=attack, command=attack, device=attack, commit=attack, remark=attack,
                  environment={"torch": attack, attack: attack, "packages": {attack: attack}})  # fmt: skip
        recipe = yaml.safe_load((path.parent / "recipe.yaml").read_text())
        recipe["model"] |= {attack: attack, "number": number}
        (path.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return file


def test_texts_of_records_stay_texts(hostile: Path, tmp_path: Path) -> None:
    page = write_report(hostile, tmp_path / "report")
    elements = Elements(page.read_text(encoding="utf-8"))
    assert "taken" in page.read_text(encoding="utf-8")  # it is there, as a text
    assert not [script for script in elements.scripts if "taken" in script]
    assert not {name for name in elements.attributes if name.startswith("on")}
    for file in (tmp_path / "report" / "tables").glob("*.tex"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"\\input|\\frac|(?<!\\)#|(?<!\\)50%", text), file
    for file in (tmp_path / "report" / "tables").glob("*.md"):
        assert "<script" not in file.read_text(encoding="utf-8").replace("\\<", ""), file
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "runs"]


def test_a_page_of_data_escapes_what_its_script_reads(tmp_path: Path) -> None:
    item = Item(name=SCRIPT, split="</script>" + SCRIPT, tags={SCRIPT: (SCRIPT,)}, numbers={SCRIPT: 1.0},
                notes=(SCRIPT,), picture=np.zeros((4, 4, 3), np.uint8))  # fmt: skip
    finding = dict.fromkeys(("level", "what", "where", "do"), SCRIPT)
    page = browse.write_page("a/../../b", Browsed([item], 1, [["x"], [SCRIPT]]), [finding], tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    assert page.parent == tmp_path / "out"
    assert SCRIPT not in text
    stored = re.search(r'<script type="application/json" id="items">(.*?)</script>', text, re.DOTALL)
    assert stored is not None
    assert json.loads(stored[1])[0]["name"] == SCRIPT


@pytest.mark.parametrize("folder", ["../../../../etc", "/etc", "..", ".", "", "a/b", "a\\b", "C:x", "a\0b"])
def test_pictures_lie_beside_their_index(folder: str, tmp_path: Path) -> None:
    file = write_fake_study(tmp_path, DEMO[:2], seeds=1, images=3, pictured=1, size=16, steps=6)
    index = next(tmp_path.rglob("index.json"))
    edit_json(index, samples=[{"name": "test_01.png", "folder": folder}])
    with pytest.raises(InputError, match="is no folder beside it") as error:
        write_report(file, tmp_path / "report")
    assert error.value.where == index


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ('=HYPERLINK("http://x")', '\'=HYPERLINK("http://x")'),
        ("@SUM(1)", "'@SUM(1)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3+cmd|' /C calc'!A0", "'-2+3+cmd|' /C calc'!A0"),
        ("\t=1+1", "'\t=1+1"),
        ("+CBAM", "+CBAM"),
        ("-aug", "-aug"),
        ("w/o =", "w/o ="),
    ],
)
def test_a_spreadsheet_computes_nothing_from_a_name(text: str, cell: str) -> None:
    table = Table("t", "T", "", (Column("method", "Method"), Column("f1", "F1", "score")),
                  (Row("a", {"method": Cell(text), "f1": Cell(-0.5)}),))  # fmt: skip
    (_, (_, method, value, *_)) = csv.reader(io.StringIO(to_csv(table)))
    assert (method, value) == (cell, "-0.5")
