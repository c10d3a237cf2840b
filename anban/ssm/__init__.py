"""State-space models: S4, S4D, S4ND, the selective scan of Mamba, SS2D and VMamba, Vision Mamba, RSCaMa.

Usable without the rest of anban. Names are imported when first used:

    from anban.ssm import selective_scan, SS2D, VSSBlock, S4D, Mamba
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "selective_scan": "scan",
    "selective_scan_2d": "scan",
    "Mamba": "mamba",
    "MambaState": "mamba",
    "VisionMamba": "vim",
    "VimBlock": "vim",
    "RSCaMaEncoder": "rscama",
    "CaMamba": "rscama",
    "SDSSM": "rscama",
    "STSSM": "rscama",
    "TTSSM": "rscama",
    "TTRSM": "rscama",
    "SS2D": "vmamba",
    "VSSBlock": "vmamba",
    "VSSM": "vmamba",
    "VSSMBackbone": "vmamba",
    "cross_scan": "vmamba",
    "cross_merge": "vmamba",
    "forward_type": "vmamba",
    "S4Block": "s4",
    "S4D": "s4",
    "S4ND": "s4",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"anban.ssm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
