"""tar, and streams that hold a tar or a single file in compressed form."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import tarfile
from collections.abc import Callable, Iterator
from typing import IO

from anban.audit.archives.look import CHUNK, At, Look, Member, Reader, Sink
from anban.audit.extras import extra
from anban.audit.formats import HEAD, sniff_head

#: What the file in a compressed stream is called: it has no name of its own.
_STREAM = "(the one file)"


class _Counted(io.RawIOBase):
    """A stream whose bytes are accounted for, with its first bytes put back in front."""

    def __init__(self, look: Look, stream: IO[bytes], first: bytes = b""):
        self.look, self.stream, self.first = look, stream, first

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = CHUNK if size < 0 else min(size, CHUNK)
        if self.first:
            data, self.first = self.first[:size], self.first[size:]
            return data
        data = self.stream.read(size)
        self.look.spend(len(data))
        return data


def read_tar(look: Look, file: IO[bytes], at: At) -> None:
    """See `look.Reader`."""
    file.seek(0)
    _read(look, _Counted(look, file), at)


def _read(look: Look, stream: io.RawIOBase, at: At) -> None:
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for info in archive:
            if info.isdir():
                continue
            link = info.linkname if info.issym() or info.islnk() else None
            look.meet(Member(info.name, link=link, special=info.isdev()), at)
            held = archive.extractfile(info) if info.isreg() else None
            if held is not None:
                look.produced -= info.size  # the stream accounts for these bytes already
                look.drain(held, info.name, at)


def reads(opener: Callable[[IO[bytes]], IO[bytes]]) -> Reader:
    """A reader of what `opener` decompresses: a tar, or a single file."""

    def read(look: Look, file: IO[bytes], at: At) -> None:
        file.seek(0)
        with opener(file) as stream:
            first = stream.read(HEAD)
            look.spend(len(first))
            counted = _Counted(look, stream, first)
            if sniff_head(first).name == "tar":
                _read(look, counted, at)
                return
            look.meet(Member(_STREAM), at)
            sink = Sink(look, _STREAM, at)
            for chunk in _chunks(counted):
                look.produced -= len(chunk)
                sink.write(chunk)
            sink.close()

    return read


def _chunks(stream: io.RawIOBase) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        yield chunk


def _zstandard(file: IO[bytes]) -> IO[bytes]:
    try:
        zstd = importlib.import_module("compression.zstd")  # in the library from Python 3.14 on
    except ModuleNotFoundError:
        zstd = extra("backports.zstd")
    opened: IO[bytes] = zstd.open(file)
    return opened


#: Container -> its reader.
COMPRESSED: dict[str, Reader] = {
    "gzip": reads(lambda file: gzip.GzipFile(fileobj=file)),  # type: ignore[arg-type, return-value]
    "bzip2": reads(bz2.BZ2File),
    "xz": reads(lzma.LZMAFile),
    "zstandard": reads(_zstandard),
}
