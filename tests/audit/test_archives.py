"""Archives: listed and looked into in memory; locked ones told and opened with a list; harm refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import py7zr
import pytest
import pyzipper

from anban.audit.archives import Limits, Seen, leads_out, look_into
from anban.audit.limits import read_limits
from tests.audit.conftest import encoded, scene, zipped

LIMITS: Limits = read_limits()["archives"]
PICTURE = encoded(scene(0, (40, 30)))
FILES = {"a/one.png": PICTURE, "b.txt": b"some text", "two.jpg": encoded(scene(1, (40, 30)), "JPEG")}


@pytest.fixture(autouse=True)
def _writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No look leaves anything in the working folder or in the temporary one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield
    assert os.listdir(tmp_path) == []


def looked(
    content: bytes, container: str = "zip", passwords: tuple[str, ...] = (), limits: Limits = LIMITS
) -> Seen:
    return look_into(io.BytesIO(content), container, len(content), limits, passwords)


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def sevened(files: dict[str, bytes], password: str | None = None, header: bool = False) -> bytes:
    buffer = io.BytesIO()
    with py7zr.SevenZipFile(buffer, "w", password=password, header_encryption=header) as archive:
        for name, content in files.items():
            archive.writestr(content, name)
    return buffer.getvalue()


def locked(files: dict[str, bytes], password: str) -> bytes:
    buffer = io.BytesIO()
    with pyzipper.AESZipFile(buffer, "w", encryption=pyzipper.WZ_AES) as archive:
        archive.setpassword(password.encode())
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("container", "content"),
    [
        ("zip", zipped(FILES)),
        ("zip", zipped(FILES, zipfile.ZIP_BZIP2)),
        ("zip", zipped(FILES, zipfile.ZIP_LZMA)),
        ("7z", sevened(FILES)),
        ("tar", tarred(FILES)),
        ("gzip", tarred(FILES, "w:gz")),
        ("bzip2", tarred(FILES, "w:bz2")),
        ("xz", tarred(FILES, "w:xz")),
    ],
)
def test_members_are_listed_and_told_by_content(container: str, content: bytes) -> None:
    seen = looked(content, container)
    assert (seen.members, seen.pictures) == (3, 2)
    assert dict(seen.kinds) == {"png": 1, "text": 1, "jpeg": 1}
    assert set(seen.names) == set(FILES)
    assert seen.hostile == seen.unread == []
    assert [finding.problem for finding in seen.findings(container)] == ["archive"]


@pytest.mark.parametrize(
    ("container", "content"),
    [("gzip", gzip.compress(PICTURE)), ("bzip2", bz2.compress(PICTURE)), ("xz", lzma.compress(PICTURE))],
)
def test_a_compressed_picture_is_found(container: str, content: bytes) -> None:
    seen = looked(content, container)
    assert (seen.members, seen.pictures) == (1, 1)


def test_names_in_an_old_coding_are_readable() -> None:
    content = zipped({"xxxx.png": PICTURE}).replace(b"xxxx", "海报".encode("gb18030"))
    assert looked(content).names == ["海报.png"]


@pytest.mark.parametrize("container", ["zip", "7z"])
def test_a_locked_archive_is_told_and_opened_by_the_list(container: str) -> None:
    content = locked(FILES, "poster") if container == "zip" else sevened(FILES, "poster")
    shut = looked(content, container)
    assert (shut.encrypted, shut.password, shut.pictures) == (3, None, 0)
    assert [finding.problem for finding in shut.findings(container)] == ["archive", "password_protected"]
    assert looked(content, container, ("one", "two")).password is None
    opened = looked(content, container, ("one", "poster"))
    assert (opened.password, opened.pictures) == ("poster", 2)
    assert opened.hostile == []


def test_an_encrypted_list_of_files_is_told() -> None:
    content = sevened(FILES, "poster", header=True)
    seen = looked(content, "7z")
    assert seen.headers_encrypted
    assert seen.members == 0
    assert "list of files" in seen.findings("7z")[1].what
    assert looked(content, "7z", ("poster",)).pictures == 2


def test_nested_archives_are_looked_into() -> None:
    inner = tarred({"deep.png": PICTURE}, "w:gz")
    seen = looked(zipped({"more/inner.tgz": inner, "x.7z": sevened({"y.png": PICTURE})}))
    assert (seen.nested, seen.pictures) == (2, 2)
    assert "more/inner.tgz/deep.png" in seen.names


def test_nesting_ends() -> None:
    content = b"the end"
    for _ in range(100):
        content = zipped({"inner.zip" if content[:2] == b"PK" else "end.txt": content})
    seen = looked(content)
    assert seen.hostile == [f"archives are nested deeper than {LIMITS.most_depth}"]


def test_an_archive_in_itself_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # A true quine takes a lot of bytes; what the look sees of it is the same digest again.
    from anban.audit.archives import look

    class Same:
        def digest(self) -> bytes:
            return b"same"

    monkeypatch.setattr(look.hashlib, "sha256", lambda data: Same())
    seen = looked(zipped({"r.zip": zipped({"r.zip": zipped({"a": b""})})}))
    assert seen.hostile == ["'r.zip/r.zip' holds itself"]


@pytest.mark.parametrize("container", ["zip", "gzip", "xz", "7z"])
def test_a_bomb_is_refused_in_little_memory(container: str) -> None:
    zeros = bytes(30_000_000)
    content = {
        "zip": lambda: zipped({"zeros": zeros}),
        "gzip": lambda: gzip.compress(zeros),
        "xz": lambda: lzma.compress(zeros, preset=0),
        "7z": lambda: sevened({"zeros": zeros}),
    }[container]()
    tracemalloc.start()
    seen = looked(content, container, limits=replace(LIMITS, bomb_bytes=5_000_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert any("a bomb" in each for each in seen.hostile)
    assert peak < 20_000_000


def test_a_bomb_that_lies_about_its_size_is_refused() -> None:
    content = bytearray(zipped({"zeros": bytes(10_000_000)}))
    at = content.rfind(b"PK\1\2")
    content[at + 24 : at + 28] = struct.pack("<L", 1000)  # the size that the directory tells
    seen = looked(bytes(content))
    assert seen.hostile  # the checksum does not fit what was read, and no more than told was read


def test_overlapping_files_are_refused() -> None:
    content = zipped({"zeros": bytes(1000)})
    at, end = content.rfind(b"PK\1\2"), content.rfind(b"PK\5\6")
    entry = content[at:end]
    many = 1000
    record = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, many, many, len(entry) * many, at, 0)
    big = struct.pack("<L", 10_000)
    entry = entry[:20] + big + entry[24:]
    seen = looked(content[:at] + entry * many + record)
    assert any("overlap" in each for each in seen.hostile)


def test_many_bytes_are_looked_into_only_in_part() -> None:
    small = Limits(1000, 50_000, 10_000, 8, 150, 100_000_000)
    seen = looked(tarred({f"{i}.bin": os.urandom(20_000) for i in range(10)}), "tar", limits=small)
    assert seen.unread == ["looked into for its first 50000 bytes"]
    assert seen.hostile == []


def test_many_members_are_listed_only_in_part() -> None:
    small = Limits(10, 50_000, 10_000, 8, 150, 100_000_000)
    seen = looked(zipped({f"{i}": b"" for i in range(15)}), limits=small)
    assert seen.members == 10
    assert seen.unread == ["only the first 10 files were listed"]


@pytest.mark.parametrize("name", ["../up.png", "a/../../up.png", "/etc/passwd", "C:\\x.png", "..\\up.png"])
@pytest.mark.parametrize("container", ["zip", "tar"])
def test_names_that_lead_out_are_told(name: str, container: str) -> None:
    content = zipped({name: PICTURE}) if container == "zip" else tarred({name: PICTURE})
    assert "leads out of the folder" in looked(content, container).hostile[0]


def test_links_that_lead_out_are_told() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for kind, target in (
            (tarfile.SYMTYPE, "/etc/passwd"),
            (tarfile.SYMTYPE, "beside.png"),
            (tarfile.CHRTYPE, ""),
        ):
            info = tarfile.TarInfo(f"link-{target.strip('/')[:3]}")
            info.type, info.linkname = kind, target
            archive.addfile(info)
    seen = looked(buffer.getvalue(), "tar")
    assert len(seen.hostile) == 2
    assert "/etc/passwd" in seen.hostile[0]
    assert "device" in seen.hostile[1]


def test_a_zip_link_that_leads_out_is_told() -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, "../../secrets")
    assert "leads out" in looked(buffer.getvalue()).hostile[0]


def test_a_wrong_checksum_is_told_and_the_rest_still_read() -> None:
    content = bytearray(zipped(FILES, zipfile.ZIP_STORED))
    at = content.find(b"some text")
    content[at] ^= 1
    seen = looked(bytes(content))
    assert len(seen.hostile) == 1
    assert "b.txt" in seen.hostile[0]
    assert seen.pictures == 2
    assert [finding.problem for finding in seen.findings("zip")] == ["archive", "hostile_archive"]


def test_an_unsupported_method_is_told() -> None:
    content = bytearray(zipped({"a.png": PICTURE}, zipfile.ZIP_STORED))
    for mark, offset in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        at = content.find(mark)
        content[at + offset : at + offset + 2] = struct.pack("<H", 97)
    seen = looked(bytes(content))
    assert seen.unread == ["'a.png' is packed by method 97, which is not supported"]


@pytest.mark.parametrize("container", ["zip", "7z", "rar", "tar", "gzip", "xz", "zstandard"])
@pytest.mark.parametrize(
    "content", [b"PK\3\4", b"7z\xbc\xaf\x27\x1c" + bytes(26), b"Rar!\x1a\7\1\0" + b"\xff" * 50]
)
def test_rubbish_is_damage_and_no_crash(container: str, content: bytes) -> None:
    seen = looked(content, container)
    assert seen.members == 0
    assert seen.findings(container)[0].problem == "archive"


def test_a_rar_is_listed_and_its_stored_files_read() -> None:
    """A RAR 4 archive of one stored picture, written here by hand: no free program writes them."""

    def block(kind: int, flags: int, body: bytes, data: bytes = b"") -> bytes:
        head = struct.pack("<BHH", kind, flags, 7 + len(body)) + body
        return struct.pack("<H", zlib.crc32(head) & 0xFFFF) + head + data

    name = b"in\\one.png"
    body = struct.pack(
        "<LLBLLBBHL", len(PICTURE), len(PICTURE), 3, zlib.crc32(PICTURE), 0, 29, 0x30, len(name), 0o644
    )
    content = b"Rar!\x1a\7\0" + block(0x73, 0, bytes(6)) + block(0x74, 0x8000, body + name, PICTURE)
    content += block(0x7B, 0x4000, b"")
    seen = looked(content, "rar")
    assert seen.names == ["in/one.png"]
    assert (seen.members, seen.pictures) == (1, 1)
    assert seen.hostile == []


@pytest.mark.parametrize(
    ("path", "beside", "out"),
    [
        ("a/b.png", "", False),
        ("a..b/c.png", "", False),
        ("a/../b.png", "", True),
        ("a\0b", "", True),
        ("c:x", "", True),
        ("../b.png", "a/link", False),
        ("../../b.png", "a/link", True),
        ("..\\..\\b.png", "a\\link", True),
        ("/etc/passwd", "a/link", True),
    ],
)
def test_which_paths_lead_out(path: str, beside: str, out: bool) -> None:
    assert leads_out(path, beside) == out
