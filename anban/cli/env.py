"""`anban env`: what is installed, which device would be used, and why."""

from __future__ import annotations

from typing import Any

from anban.cli.recipes import AsJson
from anban.cli.show import as_json


def env(json: AsJson = False) -> None:
    """Say what is installed, which device would be used, and why."""
    import torch

    import anban
    from anban.recipe.schema import plugins
    from anban.record.environment import environment
    from anban.ssm.backends import BACKENDS, choose, module

    usable = torch.cuda.is_available()
    if usable:
        why = f"CUDA {torch.version.cuda} sees {torch.cuda.get_device_name()}"
    elif torch.version.cuda is None:
        why = "this torch was built without CUDA"
    else:
        why = f"torch was built for CUDA {torch.version.cuda}, but no usable GPU or driver was found"
    device = torch.device("cuda" if usable else "cpu")
    scan, scan_why = choose("auto", device, torch.float32)
    faults = {name: module(name).unusable(device, torch.float32) for name in BACKENDS}
    found: dict[str, Any] = {
        "anban": anban.__version__,
        **environment(),
        "device": device.type,
        "device_because": why,
        "scan_backend": scan,
        "scan_backend_because": scan_why,
        "scan_backends": {name: fault or "runs" for name, fault in faults.items()},
        "threads": torch.get_num_threads(),
        "plugins": sorted(plugins()),
    }
    if json:
        as_json(found)
        return
    for key, value in found.items():
        if isinstance(value, dict):
            value = ("; " if key == "scan_backends" else ", ").join(f"{k} {v}" for k, v in value.items())
        print(f"{key}: {value}")
