"""7z: through py7zr, which pushes what it unpacks into the look's own sinks instead of files."""

from __future__ import annotations

from collections import Counter
from typing import IO, Any

from anban.audit.archives.look import At, Enough, Look, Member, Seen, Sink, leads_out
from anban.audit.extras import extra
from anban.errors import InputError


def read_seven(look: Look, file: IO[bytes], at: At) -> None:
    """See `look.Reader`."""
    py7zr = extra("py7zr")
    password = None
    archive = _open(py7zr, file, None)
    if archive is None:
        look.seen.headers_encrypted = True
        password = next((each for each in look.passwords if _open(py7zr, file, each) is not None), None)
        archive = _open(py7zr, file, password) if password is not None else None
        if archive is None:
            return
    infos = [info for info in getattr(archive, "files", ()) if not info.is_directory]
    locked = archive.password_protected
    for info in infos:
        look.meet(Member(info.filename, locked), at)
    look.declared(sum(info.uncompressed for info in infos), at)
    if any(leads_out(info.filename) for info in infos):
        look.note(f"{at.prefix}contents are not read: py7zr refuses such names")
        return
    if not locked:
        archive.extractall(factory=_Factory(look, at))
        return
    for each in look.passwords if password is None else [password]:
        produced, before = look.produced, _copy(look.seen)
        try:
            _open(py7zr, file, each).extractall(factory=_Factory(look, at))
        except (Enough, InputError):
            raise
        except Exception:  # a wrong password shows as damage
            look.produced, look.seen = produced, before
            continue
        look.seen.password = each
        return


def _copy(seen: Seen) -> Seen:
    return Seen(**{**vars(seen), "kinds": Counter(seen.kinds), "names": [*seen.names],
                   "hostile": [*seen.hostile], "unread": [*seen.unread]})  # fmt: skip


def _open(py7zr: Any, file: IO[bytes], password: str | None) -> Any:
    """The archive, or None where its header needs a password (another one than this)."""
    file.seek(0)
    try:
        return py7zr.SevenZipFile(file, password=password)
    except py7zr.exceptions.PasswordRequired:
        return None
    except Exception:
        if password is None:
            raise
        return None  # what a wrong password decrypts is no header


class _Factory:
    """Gives py7zr something to write each member to."""

    def __init__(self, look: Look, at: At):
        self.look, self.at = look, at

    def create(self, filename: str) -> Sink:
        return Sink(self.look, filename.rpartition("/")[2], self.at)
