"""Looking into zip, 7z, rar, tar and compressed streams without writing anything to disk.

A look reads the directory, then the members as far as a budget of bytes goes: their first bytes say what they are, and
checksums are compared on the way. Members that are archives are looked into in turn. Whatever an archive does to harm
(bombs, names that leave the folder, archives in themselves) is written down; nothing of it is carried out.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from typing import IO

from anban.audit.archives.look import At, Enough, Limits, Look, Seen, leads_out
from anban.audit.archives.rars import read_rar
from anban.audit.archives.sevens import read_seven
from anban.audit.archives.tars import COMPRESSED, read_tar
from anban.audit.archives.zips import read_zip

__all__ = ["Limits", "Seen", "leads_out", "look_into"]

READERS = {"zip": read_zip, "7z": read_seven, "rar": read_rar, "tar": read_tar, **COMPRESSED}


def look_into(
    file: IO[bytes], container: str, size: int, limits: Limits, passwords: Sequence[str] = ()
) -> Seen:
    """Look into an archive.

    Args:
        file: open; it can seek.
        container: its format, as `formats.Format.container` says.
        size: of the file in bytes.
        passwords: tried in their order, where something needs one.

    Raises:
        InputError: the library for this kind of archive is not installed.
    """
    look = Look(READERS, limits, passwords, size)
    with contextlib.suppress(Enough), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        look.into(file, container, At("", size))
    return look.seen
