"""rar: listed by rarfile. Without an outside program only members that are stored as they are can be read."""

from __future__ import annotations

from typing import IO

from anban.audit.archives.look import At, Look, Member
from anban.audit.extras import extra
from anban.audit.formats import FORMATS


def read_rar(look: Look, file: IO[bytes], at: At) -> None:
    """See `look.Reader`."""
    rarfile = extra("rarfile")
    file.seek(0)
    try:
        archive = rarfile.RarFile(file, part_only=True)
    except rarfile.NeedFirstVolume:
        look.note("a later part of an archive in several files")
        return
    infos = [info for info in archive.infolist() if info.is_file() or info.is_symlink()]
    if archive.needs_password() and not infos:
        look.seen.headers_encrypted = True
        return
    for info in infos:
        link = info.file_redir[2] if info.file_redir else None
        look.meet(Member(info.filename, info.needs_password(), link), at)
    look.declared(sum(info.file_size for info in infos), at)
    packed = 0
    for info in infos:
        # Without an outside program only what is stored as it is can be read; the rest is told by its name.
        if info.compress_type == rarfile.RAR_M0 and not info.needs_password() and not info.file_redir:
            with archive.open(info) as stream:
                look.drain(stream, info.filename, at)
        else:
            packed += 1
            extension = info.filename.rpartition(".")[2].lower()
            form = next(
                (each for each in FORMATS.values() if extension in each.extensions), FORMATS["unknown"]
            )
            look.seen.kinds[form.name] += 1
            look.seen.pictures += form.group == "picture"
    if packed:
        look.note(f"{at.prefix}{packed} packed files of a rar are known by name only")
