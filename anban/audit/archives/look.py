"""One look into an archive: what it may still read, what it has seen, and what it makes of members and their bytes."""

from __future__ import annotations

import hashlib
import io
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, NamedTuple

from anban.audit.finding import Finding
from anban.audit.formats import HEAD, sniff_head
from anban.errors import InputError
from anban.recipe.schema import Count, Positive

#: Names, harms and notes that a finding tells.
SHOWN = 20

#: Bytes that are read at a time.
CHUNK = 65_536


@dataclass(frozen=True)
class Limits:
    """What is read of an archive; see limits.yaml."""

    most_members: Count
    most_bytes: Count
    most_nested_bytes: Count
    most_depth: Count
    bomb_ratio: Positive
    bomb_bytes: Count


@dataclass
class Seen:
    """What a look has found, over all nested archives together.

    Attributes:
        members: files in it, pictures among them, and files that need a password.
        kinds: format -> how many members of it.
        names: of the first members, nested ones as `inner.zip/a.jpg`.
        nested: archives in it.
        headers_encrypted: whether not even the names can be read.
        password: the one of the list that opens it.
        hostile: what it does to harm, or how it is damaged, as sentences.
        unread: what was left out, as sentences.
    """

    members: int = 0
    pictures: int = 0
    encrypted: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    names: list[str] = field(default_factory=list)
    nested: int = 0
    headers_encrypted: bool = False
    password: str | None = None
    hostile: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def findings(self, container: str) -> list[Finding]:
        """As the problems archive, password_protected and hostile_archive."""
        held = f"{self.members} files, {self.pictures} of them pictures"
        data = {
            "members": self.members,
            "pictures": self.pictures,
            "kinds": dict(self.kinds),
            "names": self.names,
            "nested": self.nested,
            "unread": self.unread,
        }
        notes = "".join(f"; {note}" for note in self.unread)
        found = [Finding("archive", f"{container} with {held}{notes}", data=data)]
        if self.headers_encrypted or self.encrypted:
            which = "its list of files" if self.headers_encrypted else f"{self.encrypted} of its files"
            opened = "; a password of the list opens it" if self.password is not None else ""
            told = {"headers": self.headers_encrypted, "members": self.encrypted, "password": self.password}
            found.append(
                Finding("password_protected", f"{which} cannot be read without a password{opened}", data=told)
            )
        if self.hostile:
            found.append(Finding("hostile_archive", "; ".join(self.hostile)))
        return found


class Enough(Exception):
    """The budget is spent, or the archive is a bomb: the look ends here, with what it has seen."""


class At(NamedTuple):
    """Where in the nest of archives a reader is.

    Attributes:
        prefix: names of the archives around it, each with a slash; empty for the outermost.
        size: of the archive that is read, in bytes.
        ancestors: digests of it and of the archives around it, but for the outermost.
    """

    prefix: str
    size: int
    ancestors: tuple[bytes, ...] = ()


class Member(NamedTuple):
    """A file of an archive, as its directory tells of it; `link` is the path that a link leads to."""

    name: str
    encrypted: bool = False
    link: str | None = None
    special: bool = False


Reader = Callable[["Look", IO[bytes], At], None]


class Look:
    """One look: what it may still read, and what it has seen."""

    def __init__(self, readers: Mapping[str, Reader], limits: Limits, passwords: Sequence[str], size: int):
        self.readers, self.limits, self.passwords, self.size = readers, limits, passwords, size
        self.seen = Seen()
        self.produced = 0

    def into(self, file: IO[bytes], container: str, at: At) -> None:
        """Look into one archive."""
        reader = self.readers.get(container)
        if reader is None:
            self.note(f"{at.prefix}{container} is not looked into: there is no reader for it")
            return
        try:
            reader(self, file, at)
        except (Enough, InputError):
            raise
        except MemoryError:
            self.harm(f"{at.prefix}it asks for more memory than there is")
        except Exception as error:  # damaged bytes make the readers raise whatever comes
            text = " ".join(str(error).split()) or type(error).__name__
            self.harm(f"{at.prefix}damaged: {text[:200]}")

    def harm(self, what: str) -> None:
        if what not in self.seen.hostile and len(self.seen.hostile) < SHOWN:
            self.seen.hostile.append(what)

    def note(self, what: str) -> None:
        if what not in self.seen.unread and len(self.seen.unread) < SHOWN:
            self.seen.unread.append(what)

    def meet(self, member: Member, at: At) -> None:
        """Count a member of a directory and judge its name."""
        if self.seen.members >= self.limits.most_members:
            self.note(f"only the first {self.limits.most_members} files were listed")
            raise Enough
        self.seen.members += 1
        self.seen.encrypted += member.encrypted
        name = at.prefix + member.name
        if len(self.seen.names) < SHOWN:
            self.seen.names.append(name[:500])
        if leads_out(member.name):
            self.harm(f"the name '{name[:200]}' leads out of the folder")
        if member.link is not None:
            self.meet_link(member.name, member.link, at)
        if member.special:
            self.harm(f"'{name[:200]}' is a device")

    def meet_link(self, name: str, target: str, at: At) -> None:
        """Judge where a link leads to."""
        if leads_out(target, name):
            self.harm(f"the link '{(at.prefix + name)[:200]}' leads out of the folder, to '{target[:200]}'")

    def declared(self, total: int, at: At) -> None:
        """Refuse an archive that says of itself that it grows out of all proportion."""
        if total > self.limits.bomb_bytes and total > self.limits.bomb_ratio * max(1, at.size):
            self.harm(f"{at.prefix}a bomb: {total} bytes come out of {at.size}")
            raise Enough

    def spend(self, count: int) -> None:
        """Account for bytes that came out of a decompressor."""
        self.produced += count
        self.declared(self.produced, At("", self.size))
        if self.produced > self.limits.most_bytes:
            self.note(f"looked into for its first {self.limits.most_bytes} bytes")
            raise Enough

    def drain(self, stream: IO[bytes], name: str, at: At) -> None:
        """Read a member called so to its end."""
        sink = Sink(self, name, at)
        while chunk := stream.read(CHUNK):
            sink.write(chunk)
        sink.close()


class Sink:
    """Takes a member's bytes: keeps the first to tell what it is, and all of it if it is an archive.

    It has the methods that py7zr asks of what it writes to.
    """

    def __init__(self, look: Look, name: str, at: At):
        self.look, self.name, self.ancestors = look, at.prefix + name, at.ancestors
        self.kept = bytearray()
        self.keeps = True  # as long as it may turn out to be an archive
        self.count = 0

    def write(self, data: bytes | bytearray) -> int:
        self.look.spend(len(data))
        self.count += len(data)
        if self.keeps:
            self.kept += data[: self.look.limits.most_nested_bytes - len(self.kept)]
            self.keeps = len(self.kept) < HEAD or bool(sniff_head(bytes(self.kept[:HEAD])).container)
        return len(data)

    def close(self) -> None:
        form = sniff_head(bytes(self.kept[:HEAD]))
        self.look.seen.kinds[form.name] += 1
        self.look.seen.pictures += form.group == "picture"
        if form.container:
            self.nested(form.container)

    def nested(self, container: str) -> None:
        look = self.look
        look.seen.nested += 1
        digest = hashlib.sha256(self.kept).digest()
        if self.count > look.limits.most_nested_bytes:
            look.note(f"'{self.name}' is not looked into: {self.count} bytes")
        elif digest in self.ancestors:
            look.harm(f"'{self.name}' holds itself")
        elif len(self.ancestors) + 1 >= look.limits.most_depth:
            look.harm(f"archives are nested deeper than {look.limits.most_depth}")
        else:
            inner = io.BytesIO(bytes(self.kept))
            look.into(inner, container, At(self.name + "/", self.count, (*self.ancestors, digest)))

    def read(self, size: int | None = None) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset

    def flush(self) -> None:
        pass

    def size(self) -> int:
        return self.count


def leads_out(path: str, beside: str = "") -> bool:
    """Whether a path would lie outside of the folder that an archive is unpacked in.

    Args:
        path: a member's name, or where a link leads to.
        beside: the name of the link, which its target is relative to.
    """
    path = path.replace("\\", "/")
    if path.startswith("/") or re.match(r"[A-Za-z]:", path) or "\0" in path:
        return True
    if not beside:
        return ".." in path.split("/")
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(beside.replace("\\", "/")), path))
    return inside.split("/")[0] == ".."
