"""zip: the directory first, then the members; locked ones with the first password of the list that fits."""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import zipfile
from collections.abc import Sequence
from typing import IO, Any

from anban.audit.archives.look import CHUNK, At, Enough, Look, Member
from anban.audit.extras import extra
from anban.errors import InputError

_METHODS = {0, 8, 12, 14}
_AES = 99  # the method under which AES hides the real one
_EOCD, _EOCD64 = b"PK\5\6", b"PK\6\6"


def read_zip(look: Look, file: IO[bytes], at: At) -> None:
    """See `look.Reader`."""
    directory = _directory_bytes(file)
    if directory > 200 * look.limits.most_members:  # an entry is rarely longer than 200 bytes
        look.harm(f"{at.prefix}its directory has {directory} bytes")
        return
    with zipfile.ZipFile(file) as archive:
        infos = [info for info in archive.filelist if not info.filename.endswith("/")]
        for info in infos:
            look.meet(Member(_name(info), bool(info.flag_bits & 1)), at)
        packed = sum(info.compress_size for info in infos)
        if packed > at.size:
            look.harm(f"{at.prefix}files overlap: {packed} packed bytes in a file of {at.size}")
            return
        look.declared(sum(info.file_size for info in infos), at)
        _read(look, archive, [info for info in infos if not info.flag_bits & 1], at)
    locked = [info for info in infos if info.flag_bits & 1]
    if locked and look.passwords:
        _unlock(look, file, locked, at)


def _read(look: Look, archive: Any, infos: Sequence[Any], at: At) -> None:
    """Read members; one that is damaged does not keep the others from being read."""
    for info in infos:
        name = _name(info)
        if info.compress_type not in _METHODS and info.compress_type != _AES:
            look.note(f"'{at.prefix}{name}' is packed by method {info.compress_type}, which is not supported")
            continue
        try:
            with archive.open(info) as stream:
                if stat.S_ISLNK(info.external_attr >> 16):
                    target = stream.read(4096).decode("utf-8", "replace")
                    look.meet_link(name, target, at)
                    continue
                look.drain(stream, name, at)
        except (Enough, InputError):
            raise
        except Exception as error:
            look.harm(f"'{at.prefix}{name}' is damaged: {str(error)[:200] or type(error).__name__}")


def _unlock(look: Look, file: IO[bytes], locked: Sequence[Any], at: At) -> None:
    pyzipper = extra("pyzipper")
    smallest = min(locked, key=lambda info: info.file_size)
    if smallest.file_size > look.limits.most_nested_bytes:
        look.note(f"{at.prefix}passwords were not tried: every locked file is large")
        return
    file.seek(0)
    with pyzipper.AESZipFile(file) as archive:
        for password in look.passwords:
            archive.setpassword(password.encode())
            # A wrong password is not always noticed at once; the checksum at the end of the member knows.
            with contextlib.suppress(Exception), archive.open(smallest.filename) as stream:
                while stream.read(CHUNK):
                    pass
                look.seen.password = password
                names = {info.filename for info in locked}
                _read(look, archive, [info for info in archive.filelist if info.filename in names], at)
                return


def _name(info: Any) -> str:
    """A member's name; old programs write it in the coding of their country and do not say so."""
    name: str = info.filename
    if info.flag_bits & 0x800 or name.isascii():
        return name
    with contextlib.suppress(UnicodeError):
        raw = name.encode("cp437")
        for coding in ("utf-8", "gb18030", "shift_jis"):
            with contextlib.suppress(UnicodeError):
                return raw.decode(coding)
    return name


def _directory_bytes(file: IO[bytes]) -> int:
    """Bytes of a zip's directory as its last record tells, before anything reads it; 0 if there is none."""
    end = file.seek(0, io.SEEK_END)
    file.seek(max(0, end - 65_557 - 76))
    tail = file.read()
    file.seek(0)
    at = tail.rfind(_EOCD)
    if at < 0 or len(tail) < at + 22:
        return 0
    (count,) = struct.unpack_from("<L", tail, at + 12)
    at64 = tail.rfind(_EOCD64)
    if count == 0xFFFFFFFF and at64 >= 0 and len(tail) >= at64 + 56:
        (count,) = struct.unpack_from("<Q", tail, at64 + 40)
    return int(count)
