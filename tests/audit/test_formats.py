"""Formats by content: what is in the file decides, not what it is called."""

from __future__ import annotations

import io
import struct
import zipfile

import pytest

from anban.audit.formats import FORMATS, sniff, wrong_extension
from tests.audit.conftest import encoded, scene, zipped


def told(content: bytes, name: str = "file") -> str:
    return sniff(io.BytesIO(content), name).name


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "mp4"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0", "quicktime"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "avif"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "heic"),
        (b"RIFF\0\0\0\0AVI LIST", "avi"),
        (b"RIFF\0\0\0\0WAVEfmt ", "wav"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "webp"),
        (b"\x1aE\xdf\xa3\x01\0\0", "matroska"),
        (b"\n\n%PDF-1.4\n", "pdf"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "eps"),
        (b"%!PS-Adobe-3.0\n%%Creator: Adobe Illustrator(R) 8.0\n", "ai"),
        (b"%PDF-1.5\n1 0 obj <</AIPrivateData1 5 0 R>>", "ai"),
        (b"8BPS\0\1\0\0", "psd"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0", "ole"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "svg"),
        (b"<!DOCTYPE html><html></html>", "html"),
        ("标题\t价格\n海报\t12\n".encode("gb18030"), "text"),
        ("説明書です。\n".encode("shift_jis"), "text"),
        ("\ufeff中文".encode("utf-16-le"), "text"),
        (b"\0\1\0\0\0\x0f\0\x80", "truetype"),
        (b"wOF2\0\1\0\0", "web-font"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "7z"),
        (b"Rar!\x1a\7\1\0", "rar"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"MZ\x90\0\3", "program"),
        (bytes(range(256)) * 8, "unknown"),
    ],
)
def test_first_bytes_decide(content: bytes, expected: str) -> None:
    assert told(content, "picture.jpg") == expected


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "ICO", "PPM"])
def test_what_pillow_writes_is_a_picture(form: str) -> None:
    found = sniff(io.BytesIO(encoded(scene(0, (64, 48)), form)), "x")
    assert (found.group, found.decoder) == ("picture", form)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"[Content_Types].xml": b"", "word/document.xml": b""}, "word"),
        ({"[Content_Types].xml": b"", "xl/workbook.xml": b""}, "excel"),
        ({"ppt/presentation.xml": b""}, "powerpoint"),
        ({"pack.json": b"{}", "K0.info/a.jpg": b""}, "eaglepack"),
        ({"document.json": b"{}", "pages/a.json": b""}, "sketch"),
        ({"mimetype": b"application/epub+zip"}, "epub"),
        ({"a.jpg": b""}, "zip"),
    ],
)
def test_a_zip_is_told_by_what_lies_in_it(files: dict[str, bytes], expected: str) -> None:
    assert told(zipped(files, zipfile.ZIP_STORED)) == expected


def test_the_extension_settles_only_what_the_content_leaves_open() -> None:
    plain = zipped({"a.jpg": b""})
    assert told(plain, "favourites.eaglepack") == "eaglepack"
    assert told(b"%PDF-1.4\n", "poster.AI") == "ai"
    assert told(encoded(scene(0, (40, 40))), "poster.ai") == "png"


@pytest.mark.parametrize(
    ("form", "name", "misleads"),
    [
        ("jpeg", "a.JPG", ""),
        ("jpeg", "a.jpeg", ""),
        ("jpeg", "a.png", "png"),
        ("png", "a.bak", "bak"),
        ("png", "a", ""),
        ("pdf", "a.jpg", "jpg"),
        ("mp4", "a.m2v", ""),
        ("empty", "a.png", "png"),
    ],
)
def test_an_extension_misleads_on_pictures_and_as_a_picture(form: str, name: str, misleads: str) -> None:
    assert wrong_extension(FORMATS[form], name) == misleads


def test_a_zip_with_a_damaged_directory_is_still_a_zip() -> None:
    content = bytearray(zipped({"a.jpg": b"x" * 100}))
    content[-10:-6] = struct.pack("<L", 0xFFFFFF)
    assert told(bytes(content)) == "zip"
