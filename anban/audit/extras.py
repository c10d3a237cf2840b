"""Libraries that only the audit needs: imported when they are used, and named when they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from anban.errors import InputError


def extra(name: str, of: str = "audit") -> Any:
    """The module called so.

    Args:
        of: the extra of `anban` that installs it.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise InputError(
            f"{name} is not installed.", where="anban audit", do=f"pip install 'anban[{of}]'"
        ) from None
