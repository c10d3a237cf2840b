"""One file looked at: what it is, whether it can be decoded, and what the checks say of it."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from anban.audit import checks
from anban.audit.archives import look_into
from anban.audit.duplicates import Print, print_of
from anban.audit.finding import Finding
from anban.audit.formats import Format, sniff, wrong_extension
from anban.audit.picture import Picture, TooLarge, Unreadable, decoders, read_picture
from anban.audit.walk import File
from anban.errors import InputError


@dataclass(frozen=True)
class Plan:
    """What every worker needs to know.

    Attributes:
        root: the audited tree.
        limits: section of limits.yaml -> its `Limits`.
        checks: names of those that are put to pictures.
        passwords: to try on archives.
    """

    root: bytes
    limits: Mapping[str, Any]
    checks: tuple[str, ...]
    passwords: tuple[str, ...] = ()


@dataclass
class Seen:
    """What a look has found.

    Attributes:
        format, group: by content (see `formats`).
        size: of a picture, width and height; None of anything else.
        digest: SHA-256 of a picture's bytes; other files get theirs when another has their size.
        print: to find near duplicates by.
        seconds: spent on reading and on each check.
    """

    file: File
    format: str
    group: str
    findings: list[Finding] = field(default_factory=list)
    size: tuple[int, int] | None = None
    digest: bytes | None = None
    print: Print | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def look(plan: Plan, file: File) -> Seen:
    """Look at one file of the tree; whatever is wrong with it is a finding.

    Raises:
        InputError: a library is missing.
    """
    begun = time.perf_counter()
    name = os.fsdecode(file.path)
    try:
        with open(os.path.join(plan.root, file.path), "rb") as opened:
            form = sniff(opened, name)
            seen = Seen(file, form.name, form.group)
            if extension := wrong_extension(form, name):
                what = f"called .{extension}, it is {_article(form)}"
                seen.findings.append(Finding("wrong_extension", what, data={"format": form.name}))
            if form.group == "picture":
                _look_at_picture(plan, opened, form, seen, begun)
            else:
                _look_at_other(plan, opened, form, seen)
    except OSError as error:
        seen = Seen(file, "unknown", "unknown")
        seen.findings.append(Finding("check_failed", f"it cannot be read: {error.strerror or error}"))
    seen.seconds.setdefault("read", time.perf_counter() - begun)
    return seen


def died(file: File) -> Seen:
    """What is said of a file on which the process that looked at it died."""
    seen = Seen(file, "unknown", "unknown")
    seen.findings.append(
        Finding("check_failed", "the process that decoded it died, perhaps for want of memory")
    )
    return seen


def _look_at_other(plan: Plan, opened: IO[bytes], form: Format, seen: Seen) -> None:
    if form.group != "archive":
        seen.findings.append(Finding("non_image_file", f"it is {_article(form)}", data={"format": form.name}))
    if form.container:
        opened.seek(0)
        inside = look_into(opened, form.container, seen.file.size, plan.limits["archives"], plan.passwords)
        seen.findings += inside.findings(form.name)


def _article(form: Format) -> str:
    if form.group in ("empty", "unknown"):
        return "an empty file" if form.group == "empty" else "of no format that is known"
    return f"{form.name} ({form.group})"


def _look_at_picture(plan: Plan, opened: IO[bytes], form: Format, seen: Seen, begun: float) -> None:
    limits = plan.limits["picture"]
    if form.decoder not in decoders():
        seen.findings.append(Finding("check_failed", f"{form.name}: no decoder is installed for it"))
        return
    if seen.file.size > limits.most_bytes:
        seen.findings.append(Finding("too_large", f"{seen.file.size} bytes"))
        return
    opened.seek(0)
    content = opened.read()
    seen.digest = hashlib.sha256(content).digest()
    try:
        picture = read_picture(io.BytesIO(content), os.fsdecode(seen.file.path), limits)
    except Unreadable as error:
        seen.findings.append(Finding("corrupt", f"{form.name}: {error}"))
        return
    except TooLarge as error:
        seen.findings.append(Finding("too_large", str(error)))
        return
    seen.size = picture.size
    seen.findings += _facts(picture)
    seen.print = print_of(picture, plan.limits["duplicates"])
    seen.seconds["read"] = time.perf_counter() - begun
    for name in plan.checks:
        begun = time.perf_counter()
        try:
            seen.findings += checks.load(name)(picture, plan.limits[name])
        except (InputError, ImportError):
            raise
        except Exception as error:  # one odd picture must not end an audit of millions
            what = f"{name} broke off: {type(error).__name__}: {error}"
            seen.findings.append(Finding("check_failed", what, data={"check": name}))
        seen.seconds[name] = time.perf_counter() - begun


def _facts(picture: Picture) -> list[Finding]:
    """What the file says of itself."""
    found = []
    if picture.mode == "CMYK":
        found.append(Finding("cmyk", "stored as cyan, magenta, yellow and black"))
    if picture.bits > 8:
        found.append(Finding("sixteen_bit", f"{picture.bits} bits per channel", data={"mode": picture.mode}))
    if picture.frames > 1 and picture.format != "MPO":  # a phone's second picture is a preview or a map
        found.append(Finding("animated", f"{picture.frames} frames", data={"frames": picture.frames}))
    if picture.orientation > 1:
        data = {"orientation": picture.orientation}
        found.append(Finding("exif_rotated", f"EXIF orientation {picture.orientation}", data=data))
    return found


def digest(path: bytes) -> bytes | None:
    """SHA-256 of a file of any size; None where it cannot be read."""
    try:
        with open(path, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError:
        return None
