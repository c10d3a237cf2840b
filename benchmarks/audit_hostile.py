"""Archives and pictures made to harm whoever opens them, written by code."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import py7zr

MB = 1 << 20
ZIP64 = 1 << 62


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """(name, content) of each."""
    sound = zipped({"a.txt": b"text" * 100, "b.txt": bytes(range(256))})
    yield "bomb.zip", (bomb := zipped({"zeros": bytes(600 * MB)}))
    yield "bombs in a bomb.zip", zipped({f"{number}.zip": bomb for number in range(16)})
    yield "bomb.gz", gzip.compress(bytes(600 * MB), 9)
    yield "bomb of two members.gz", gzip.compress(bytes(300 * MB)) * 2
    yield "bomb.bz2", bz2.compress(bytes(200 * MB))
    yield "bomb.xz", lzma.compress(bytes(600 * MB), preset=1)
    yield "bomb.tar.gz", gzip.compress(tarred({"zeros": bytes(300 * MB)}))
    yield "bomb.7z", sevened({"zeros": bytes(600 * MB)})
    yield "overlapping.zip", overlapping(20_000)
    yield "a hundred deep.zip", nested(100, lambda inner: zipped({"in.zip": inner}))
    yield "a hundred deep.tar", nested(100, lambda inner: tarred({"in.tar": inner}))
    yield "a hundred deep.gz", nested(100, gzip.compress)
    yield "a hundred deep.xz", nested(100, lzma.compress)
    yield "a hundred deep.7z", nested(100, lambda inner: sevened({"in.7z": inner}))
    yield "many entries.zip", zipped({f"{number}": b"" for number in range(250_000)})
    yield "many entries.tar", tarred({f"{number}": b"" for number in range(150_000)})
    outside = ("../../out.txt", "/tmp/absolute.txt", "C:\\windows.txt", "a/../../b.txt", "..\\..\\c.txt")
    yield "traversal.zip", zipped(dict.fromkeys(outside, b"x"))
    yield "traversal.tar", tarred(dict.fromkeys(outside, b"x"))
    yield "traversal.7z", sevened_names(["../../out.txt", "/tmp/absolute.txt"])
    yield "long names.zip", zipped({f"{number}" * 65_000: b"x" for number in range(9)})
    yield "links.zip", linked_zip()
    yield "links and devices.tar", linked_tar()
    yield (
        "wrong checksum.zip",
        sound.replace(b"text" * 4, b"TEXT" * 4) if b"text" * 4 in sound else broken(sound),
    )
    yield "wrong checksum.7z", broken(sevened({"a.txt": bytes(range(256)) * 8}))
    yield "wrong checksum.gz", gzip.compress(b"text" * 999)[:-8] + b"\1\2\3\4" + struct.pack("<L", 3996)
    yield "wrong checksum.xz", broken(lzma.compress(bytes(range(256)) * 99))
    yield "huge sizes.zip", sizes_patched(sound)
    yield "huge zip64 sizes.zip", zip64(sound)
    yield "huge directory.zip", sound[:-10] + struct.pack("<LLH", 0xFFFFFFF0, 0, 0)
    yield "huge size.tar", huge_tar(b"77777777777\0")
    yield "huge binary size.tar", huge_tar(b"\x80\0\0\0" + struct.pack(">Q", ZIP64))
    yield "huge header.7z", seven_header(ZIP64)
    yield "huge header that fits.7z", seven_header(3 << 30)
    yield "dictionary of 4 GiB.xz", wide_xz()
    yield "huge.rar", b"Rar!\x1a\7\1\0" + struct.pack("<L", 0) + b"\xff" * 9 + b"\x01" + bytes(64)
    yield "comment only.zip", b"PK\5\6" + bytes(16) + struct.pack("<H", 65_535) + b"c" * 65_535
    yield from huge_pictures()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def sevened(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with py7zr.SevenZipFile(buffer, "w", filters=[{"id": py7zr.FILTER_LZMA2, "preset": 1}]) as archive:
        for name, content in files.items():
            archive.writestr(content, name)
    return buffer.getvalue()


def sevened_names(names: list[str]) -> bytes:
    """7z with names that py7zr would not write: one of the same length is replaced, checksums made new."""
    kept = {f"{number}".rjust(len(name), "x"): name for number, name in enumerate(names)}
    buffer = io.BytesIO()
    with py7zr.SevenZipFile(buffer, "w") as archive:
        archive.set_encoded_header_mode(False)
        for plain in kept:
            archive.writestr(b"x", plain)
    data = bytearray(buffer.getvalue())
    for plain, name in kept.items():
        data = data.replace(plain.encode("utf-16-le"), name.encode("utf-16-le"))
    offset, size = struct.unpack_from("<QQ", data, 12)
    struct.pack_into("<L", data, 28, zlib.crc32(data[32 + offset : 32 + offset + size]))
    struct.pack_into("<L", data, 8, zlib.crc32(data[12:32]))
    return bytes(data)


def nested(depth: int, wrap: Callable[[bytes], bytes]) -> bytes:
    content = b"the innermost"
    for _ in range(depth):
        content = wrap(content)
    return content


def broken(content: bytes) -> bytes:
    """One bit of the packed bytes flipped."""
    at = len(content) // 3
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def overlapping(count: int) -> bytes:
    """A zip whose directory names one packed member many times."""
    one = zipped({"a": bytes(MB)})
    start = one.index(b"PK\1\2")
    entry = one[start : one.index(b"PK\5\6")]
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(entry) * count, start, 0)
    return one[:start] + entry * count + end


def linked_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, target in (("out", "../../../etc"), ("absolute", "/etc/passwd"), ("loop", ".")):
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, target)
        archive.writestr("out/passwd", "through the link")
    return buffer.getvalue()


def linked_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, target in (
            ("out", tarfile.SYMTYPE, "../../../etc"),
            ("absolute", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard", tarfile.LNKTYPE, "/etc/shadow"),
            ("sda", tarfile.BLKTYPE, ""),
            ("pipe", tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return buffer.getvalue()


def sizes_patched(archive: bytes) -> bytes:
    """Every size in the directory and the local headers says 4 GB."""
    data = bytearray(archive)
    for mark, offset in ((b"PK\3\4", 18), (b"PK\1\2", 20)):
        at = data.find(mark)
        while at >= 0:
            struct.pack_into("<LL", data, at + offset, 0xFFFFFFF0, 0xFFFFFFF0)
            at = data.find(mark, at + 4)
    return bytes(data)


def zip64(archive: bytes) -> bytes:
    """A directory whose one entry says in its extra field that it grows to 4 EiB."""
    start = archive.index(b"PK\1\2")
    extra = struct.pack("<HHQQ", 1, 16, ZIP64, 8)
    entry = bytearray(archive[start : start + 46] + b"a.txt")
    struct.pack_into("<LL", entry, 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<HH", entry, 28, 5, len(extra))
    directory = bytes(entry) + extra
    return (
        archive[:start] + directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(directory), start, 0)
    )


def huge_tar(size: bytes) -> bytes:
    """One member whose header says it is that large."""
    header = bytearray(tarred({"a": b"x"})[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(4096)


def seven_header(size: int) -> bytes:
    """A 7z whose header is said to be that long."""
    start = struct.pack("<QQL", 0, size, 0)
    return b"7z\xbc\xaf\x27\x1c\0\4" + struct.pack("<L", zlib.crc32(start)) + start + bytes(4096)


def wide_xz() -> bytes:
    """An xz whose one block asks for the largest dictionary that the format knows."""
    data = bytearray(lzma.compress(b"text" * 1000))
    length = 4 * (data[12] + 1)  # of the block's header
    at = data.index(b"\x21\x01", 12) + 2
    data[at] = 40
    struct.pack_into("<L", data, 12 + length - 4, zlib.crc32(data[12 : 12 + length - 4]))
    return bytes(data)


def huge_pictures() -> Iterator[tuple[str, bytes]]:
    """Pictures with a few bytes and the largest sides that their headers can hold."""
    yield "huge.png", png(2**31 - 1, 2**31 - 1)
    yield "just allowed.png", png(14_000, 14_000)
    yield "text bomb.png", png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200 * MB))))
    yield "profile bomb.png", png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200 * MB))))
    yield "huge.gif", b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;"
    yield (
        "huge.bmp",
        b"BM" + bytes(8) + struct.pack("<LLllHHL", 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0) + bytes(24),
    )
    yield "huge.jpg", jpeg(65_500, 65_500)
    yield "huge.ppm", b"P6 999999999 999999999 255 "
    yield "huge.dds", b"DDS " + struct.pack("<7L", 124, 0x1007, 2**31, 2**31, 0, 0, 0) + bytes(200)
    yield "huge.qoi", b"qoif" + struct.pack(">LLBB", 2**32 - 1, 2**32 - 1, 4, 0) + bytes(8)
    yield "huge.tif", tiff(2**31 - 1, 2**31 - 1)
    yield "pages in a circle.tif", tiff(8, 8, following=8)
    yield (
        "huge.jp2",
        b"\xffO\xffQ\0/\0\0" + struct.pack(">8L", *[2**31 - 1] * 2, 0, 0, *[2**31 - 1] * 2, 0, 0) + bytes(40),
    )
    yield (
        "entities.svg",
        b"<?xml version='1.0'?><!DOCTYPE s [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]><svg>&b;</svg>",
    )


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def png(width: int, height: int, more: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = zlib.compress(bytes(min(height * (3 * width + 1), 4 * MB)))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


def tiff(width: int, height: int, following: int = 0) -> bytes:
    entries: list[Any] = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
                          (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 64)]  # fmt: skip
    table = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<LH", 8, len(entries)) + table + struct.pack("<L", following) + bytes(64)
