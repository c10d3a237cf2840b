"""`anban keys`: official parameter names and ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anban.cli.recipes import AsJson, Overrides
from anban.cli.show import as_json, as_table


def keys(
    name: Annotated[
        str,
        typer.Argument(metavar="ID", help="a network (task/model) or a recipe (task/name) that builds it"),
    ],
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="an official release's .pt, .pth or .safetensors file"),
    ],
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Print which official parameter became which of ours, then load them all, strictly."""
    from collections import Counter

    from anban.cli.networks import build
    from anban.official import key_map, load_official

    model = build(name, overrides or []).model
    found = key_map(model, checkpoint)
    if json:
        as_json([line._asdict() for line in found])
    else:
        as_table(
            [(line.official or "", line.how, line.ours or "") for line in found], ("official", "", "ours")
        )
        counts = Counter(line.how for line in found)
        print("\n" + ", ".join(f"{count} {how}" for how, count in counts.items()))
    load_official(model, checkpoint)
    if not json:
        print(f"loaded: all {len(model.state_dict())} tensors of {name}")
