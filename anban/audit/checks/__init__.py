"""The questions that are put to a picture, one module each: `check(picture, limits)` -> findings.

A module's `Limits` (a frozen dataclass) are the thresholds of the section of limits.yaml that is called like it. A module
that needs more than a picture says with `unavailable(limits)` why it cannot be asked here; what was not asked is told as
"not run", never as clean.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from anban.audit.finding import Finding
from anban.audit.picture import Picture

#: In the order in which they are asked: language reads the text that content counts.
NAMES = ("quality", "language", "print", "watermark", "content", "violation")

Check = Callable[[Picture, Any], list[Finding]]


def load(name: str) -> Check:
    """The function `check` of the module called so."""
    check: Check = _module(name).check
    return check


def unavailable(name: str, limits: Any) -> str | None:
    """Why a check cannot be carried out here (no model was given, say); None if it can.

    Raises:
        InputError: it lacks a library that can be installed.
    """
    ask: Callable[[Any], str | None] = getattr(_module(name), "unavailable", lambda _: None)
    return ask(limits)


def _module(name: str) -> Any:
    return importlib.import_module(f"anban.audit.checks.{name}")
