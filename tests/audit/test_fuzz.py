"""Damaged and hostile files: every one ends as findings, nothing is written, memory stays bounded.

A few hundred in the ordinary suite, five thousand with `make test-fuzz`.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import resource
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anban.audit.finding import PROBLEMS
from anban.audit.limits import read_limits
from anban.audit.look import Plan, look
from anban.audit.walk import File
from tests.audit.conftest import encoded, scene, zipped
from tests.audit.test_archives import FILES, locked, sevened, tarred
from tests.audit.test_run import checksums, findings, run

#: Reading text takes a second a picture, which is too long for thousands.
WITHOUT_TEXT = ("quality", "print", "watermark", "content")

IMAGE = scene(1, (90, 70))
DEEP = Image.effect_noise((40, 30), 50).convert("I;16")
TOKENS = (
    b"\0" * 8,
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\0\0\0\1",
    b"PK\1\2",
    b"../../",
    b"\xff\xd8\xff\xe1",
    b"IHDR",
    struct.pack("<Q", 1 << 62),
)


def seeds() -> list[tuple[str, bytes]]:
    """Sound files of many kinds."""
    forms = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "ICO", "PPM", "DDS")
    found = [(f"a.{form.lower()}", encoded(IMAGE, form)) for form in forms]
    exif = IMAGE.getexif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    found += [
        ("a.jpg", encoded(IMAGE, "JPEG", exif=exif, progressive=True)),
        ("deep.png", encoded(DEEP)),
        ("deep.tif", encoded(DEEP, "TIFF", compression="tiff_lzw")),
        ("moves.gif", encoded(IMAGE, "GIF", save_all=True, append_images=[scene(2, (90, 70))])),
        ("moves.webp", encoded(IMAGE, "WEBP", save_all=True, append_images=[scene(2, (90, 70))])),
        ("press.jpg", encoded(IMAGE.convert("CMYK"), "JPEG")),
        ("a.zip", zipped(FILES)),
        ("stored.zip", zipped(FILES, 0)),
        ("locked.zip", locked(FILES, "secret")),
        ("nested.zip", zipped({"in.zip": zipped(FILES), "in.7z": sevened(FILES)})),
        ("a.7z", sevened(FILES)),
        ("locked.7z", sevened(FILES, "secret", header=True)),
        ("a.tar", tarred(FILES)),
        ("a.tgz", tarred(FILES, "w:gz")),
        ("a.txz", tarred(FILES, "w:xz")),
        ("a.gz", gzip.compress(FILES["a/one.png"])),
        ("a.bz2", bz2.compress(FILES["a/one.png"])),
        ("a.xz", lzma.compress(FILES["a/one.png"])),
        ("a.rar", b"Rar!\x1a\7\0" + bytes(range(256)) * 4),
        ("five.rar", b"Rar!\x1a\7\1\0" + bytes(range(256)) * 4),
        ("a.docx", zipped({"word/document.xml": b"<w/>"})),
        ("a.pdf", b"%PDF-1.4\n" + bytes(range(256)) * 8),
        ("a.psd", b"8BPS\0\1" + bytes(range(256))),
        ("a.txt", "一二三 abc\n".encode() * 30),
    ]
    if "AVIF" in Image.SAVE:
        found.append(("a.avif", encoded(IMAGE, "AVIF")))
    return found


def damaged(content: bytes, other: bytes, draw: random.Random) -> bytes:
    """A few edits of one file: bits, lengths, cuts, doublings, a piece of another file."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at, span = draw.randrange(len(data) + 1), draw.randint(1, 40)
        match draw.randrange(6):
            case 0:
                data[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                del data[at : at + span]
            case 2:
                token = draw.choice(TOKENS)
                data[at : at + len(token)] = token
            case 3:
                data[at:at] = draw.choice(TOKENS)
            case 4:
                data[at:] = other[draw.randrange(len(other)) :]
            case 5:
                data = data[: max(1, at)]
    return bytes(data)


def mutants(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    draw, sound = random.Random(seed), seeds()
    for _ in range(count):
        (name, content), (_, other) = draw.choice(sound), draw.choice(sound)
        yield name, damaged(content, other, draw)


def test_damaged_files_end_as_findings(tmp_path: Path) -> None:
    plan = Plan(os.fsencode(tmp_path), read_limits(), WITHOUT_TEXT, ("wrong", "secret"))
    for name, content in mutants(400, seed=7):
        path = tmp_path / name
        path.write_bytes(content)
        status = path.stat()
        file = File(os.fsencode(name), status.st_size, status.st_mtime_ns, status.st_ino)
        seen = look(plan, file)
        told = [finding.told() for finding in seen.findings]
        assert json.dumps(told, default=dict)
        assert "check_failed" not in {finding.problem for finding in seen.findings}, (name, told)
        assert os.listdir(tmp_path) == [name]
        assert path.read_bytes() == content
        path.unlink()


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_damaged_files_at_a_time(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    for number, (name, content) in enumerate(mutants(1000, seed)):
        (root / f"{number:04}-{name}").write_bytes(content)
    before = checksums(root)
    summary: dict[str, Any] = run(
        root, tmp_path / "out", checks=WITHOUT_TEXT, workers=2, passwords=("wrong", "secret")
    )
    assert summary["files"] == 1000
    assert "check_failed" not in summary["problems"]
    assert {each["problem"] for each in findings(tmp_path / "out")} <= set(PROBLEMS)
    assert checksums(root) == before
    assert os.listdir(elsewhere) == []
    unit = 1 if sys.platform == "darwin" else 1024
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit < 1_500_000_000
