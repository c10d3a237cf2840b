"""The notebook's versions of STNet, measured: `python -m anban.tasks.change.models.stnet.versions [--golden FILE]`.

A version is its recipe, which states every switch. What it computes is kept as a golden case of our own, so that work on one
version cannot change another unseen (the notebook's own pitfall: two modules edited in a shared file changed all versions).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anban.recipe import load_recipe
from anban.recipe.schema import construct
from anban.tasks.change.models.stnet.network import STNet
from anban.testing.golden import fill, fill_input

VERSIONS = ["v1", "v2-dim80", "v2-dim96", *(f"v{number}" for number in range(3, 17))]


def network(arguments: dict[str, Any]) -> STNet:
    """The network of a recipe's section `model`."""
    built = construct(STNet, {key: value for key, value in arguments.items() if key != "name"})
    assert isinstance(built, STNet)
    return built


def filled(model: nn.Module) -> nn.Module:
    """The network in float64 with every parameter and buffer a function of its name and shape."""
    state = {name: torch.from_numpy(fill(name, t.shape)) for name, t in model.state_dict().items()}
    model.load_state_dict(state)
    return model.double().eval()


def cost(model: nn.Module, size: int) -> tuple[int, int]:
    """Parameters, and multiply-adds for one pair of images of `size` pixels a side; the model is on the meta device."""
    pair = torch.zeros(2, 1, 3, size, size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(*pair)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def measure(version: str) -> dict[str, Any]:
    """The golden case of one version: its switches, its cost, and what it computes eight channels wide, two blocks deep at most."""
    arguments = load_recipe(f"change/{version}").config["model"]
    with torch.device("meta"):
        parameters, macs = cost(network(arguments), 256)
    small = network({**arguments, "dims": 8, "depths": [min(2, depth) for depth in arguments["depths"]]})
    scores = scores_of(filled(small))
    return {
        "model": arguments,
        "parameters": parameters,
        "macs_256": macs,
        "scores": [round(value, 9) for value in scores.flatten()[::61].tolist()],
    }


def scores_of(model: nn.Module) -> Tensor:
    """Scores (1, classes, 64, 96) of two invented images."""
    a, b = (torch.from_numpy(fill_input(date, (1, 3, 64, 96))).double() for date in ("a", "b"))
    with torch.no_grad():
        scores: Tensor = model(a, b)
    return scores


def main() -> None:
    """Print the table of versions; with `--golden`, write their cases."""
    parser = argparse.ArgumentParser(description="parameters and MACs (256 px) of STNet's versions")
    parser.add_argument("--golden", type=Path, help="write the golden cases to this file, on purpose")
    wanted = parser.parse_args().golden
    cases = {}
    print("| version | parameters (M) | MACs at 256 px (G) |\n|---|---|---|")
    for version in VERSIONS:
        case = cases[version] = measure(version)
        print(f"| {version} | {case['parameters'] / 1e6:.1f} | {case['macs_256'] / 1e9:.1f} |", flush=True)
    if wanted is not None:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        wanted.write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
