"""Small damage to valid files: what a broken disk, a torn copy, a careless script or a malicious hand makes of them.

An edit is three numbers, (kind, where, what), each taken modulo what there is; so any edit fits any file, and hypothesis
can make a list of them shorter until it finds the one that matters.
"""

from __future__ import annotations

import copy
import io
import math
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Edit = tuple[int, int, int]
LARGEST = 2**32 - 1

numbers = st.integers(0, LARGEST)
edits = st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=5)

# Bytes that mean something to one format or another.
TOKENS = (
    b"",
    b"\x00",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x00\x00\x00\x00\x00\x00\x00\x00",
    b"\n",
    b"\xef\xbb\xbf",
    b"9" * 400,
    b"1e999",
    b"NaN",
    b"-1",
    b"[" * 5000,
    b"<a>" * 3000,
    b"../" * 6,
    b"null",
    b"!!python/object/apply:os.system [id]",
    b"&a [*a]",
    b"${",
    b"\xed\xa0\x80",
    b"'",
    b"{}",
    b": ",
)

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**400,
    2**63,
    math.nan,
    math.inf,
    "",
    "../../../etc/passwd",
    "a" * 5000,
    "\ud800",
    "nul\x00",
    "<script>alert(1)</script>",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"name": {"name": []}},
    1.5,
)


def damaged(content: bytes, edits: Sequence[Edit]) -> bytes:
    """The bytes of a file with some of them changed, cut off, moved, repeated or written over."""
    for kind, where, what in edits:
        place = where % (len(content) + 1)
        there = what % (len(content) + 1)
        match kind % 7:
            case 0 if place < len(content):  # one bit
                content = content[:place] + bytes([content[place] ^ 1 << what % 8]) + content[place + 1 :]
            case 1 if place < len(content):  # one byte
                content = content[:place] + bytes([what % 256]) + content[place + 1 :]
            case 2:  # the end is lost
                content = content[:place]
            case 3:  # a part from elsewhere is put in
                content = content[:place] + content[there : there + where % 64] + content[place:]
            case 4:  # a part is lost
                content = content[:place] + content[place + what % 64 :]
            case 5:  # a token is put in
                content = content[:place] + TOKENS[what % len(TOKENS)] + content[place:]
            case _:  # a token is written over what was there
                token = TOKENS[what % len(TOKENS)]
                content = content[:place] + token + content[place + len(token) :]
    return content


def twisted(value: Any, edits: Sequence[Edit]) -> Any:
    """A copy of plain values with some replaced by others of the wrong type or size, lost, renamed or exchanged."""
    value = copy.deepcopy(value)
    for kind, where, what in edits:
        places = list(_places(value))
        if not places:
            break
        holder, key = places[where % len(places)]
        other_holder, other_key = places[what % len(places)]
        match kind % 5:
            case 0 | 1:
                holder[key] = copy.deepcopy(ODD[what % len(ODD)])
            case 2:
                del holder[key]
            case 3 if isinstance(holder, dict):
                holder[f"{key}{what % 3 or ''}" if what % 2 else other_key] = holder.pop(key)
            case _:
                holder[key] = copy.deepcopy(other_holder[other_key])
    return value


def repacked(content: bytes, edits: Sequence[Edit]) -> bytes:
    """A zip file of which one member is damaged, under a checksum that is right again."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        chosen = names[edits[0][1] % len(names)]
        for name in names:
            data = old.read(name)
            new.writestr(name, damaged(data, edits) if name == chosen else data)
    return out.getvalue()


def _places(value: Any) -> Any:
    """(holder, key or index) of every value inside."""
    inner: Callable[[], Any] = {dict: lambda: list(value.items()), list: lambda: list(enumerate(value))}.get(
        type(value), list
    )
    for key, item in inner():
        yield value, key
        yield from _places(item)
