"""File habits the whole record shares: plain JSON values, atomic rewrites, finding run folders."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from anban.record.shapes import from_json

RUN_FILE = "run.json"


def now() -> str:
    """The time as ISO-8601 in UTC with milliseconds; always the same width, so text order is time order."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: NaN and infinities become None, paths text, tensors and arrays nested lists.

    Raises:
        TypeError: for a value with no honest JSON form; storing its `repr` would only look like a record.
    """
    match value:
        case None | bool():
            return value
        case str():  # file names that are not UTF-8 reach Python as lone surrogates, which no file can hold
            return value.encode("utf-8", "backslashreplace").decode()
        case float():
            return float(value) if math.isfinite(value) else None
        case int():
            return int(value)
        case Mapping():
            return {plain(str(key)): plain(item) for key, item in value.items()}
        case Sequence() if not isinstance(value, bytes | bytearray):
            return [plain(item) for item in value]
        case date():
            return value.isoformat()
        case os.PathLike():
            return os.fspath(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be stored in a run's record: {value!r}")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON text of `value` (see `plain`), on one line unless `indent` is given."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`: a reader, or whoever comes after a power cut, sees the old or the new file.

    Raises:
        OSError: it cannot be written; names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        raise naming(path, error) from None


def append(path: Path, data: bytes) -> None:
    """Append whole lines in one write. Nothing is ever taken away: a line that was cut off stays, closed by a line end.

    Raises:
        OSError: it cannot be written, or only in part (a full disk); names the file.
    """
    try:
        with open(path, "ab+", buffering=0) as file:
            data = (b"\n" if _ends_torn(file) else b"") + data
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise naming(path, error) from None


def naming(path: Path, error: BaseException) -> BaseException:
    """An OSError that names the file, where a write's own does not; any other error as it is."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        return OSError(error.errno, error.strerror, os.fspath(path))
    return error


def _ends_torn(file: Any) -> bool:
    """Whether a kill in the middle of a write left a last line without its end."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) != b"\n")


def read_info(folder: Path) -> dict[str, Any]:
    """The content of `folder`'s run.json.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is not a JSON object with a run's id, recipe and state.
    """
    info = from_json((folder / RUN_FILE).read_text(encoding="utf-8"))
    info = info if isinstance(info, Mapping) else {}
    missing = [key for key in ("id", "recipe", "state") if not isinstance(info.get(key), str)]
    if missing:
        raise ValueError(f"it has no text under {', '.join(missing)}")
    return dict(info)


def find_runs(out: Path | str) -> list[Path]:
    """Every folder under `out` that holds a run.json, sorted. Hidden folders and symbolic links are not entered."""
    return sorted(_walk(os.fspath(out)))


def _walk(folder: str) -> Iterator[Path]:
    try:
        with os.scandir(folder) as listing:
            entries = list(listing)
    except OSError:  # removed, or not ours to read, since its parent was listed
        return
    # A run folder holds no other run, so its checkpoints and figures need not be listed.
    if any(entry.name == RUN_FILE for entry in entries):
        yield Path(folder)
        return
    for entry in entries:
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
