"""A network between two networks: alpha f + (1 - alpha) g, taken of their weights.

Source: Wang et al., "Deep network interpolation for continuous imagery effect transition", CVPR 2019, section
3.2; there between a network trained for PSNR and the same one fine-tuned with an adversarial or perceptual
loss.

    python -m anban.tasks.denoise.interpolation RUN_F RUN_G ALPHA OUT.pt

writes a checkpoint that `anban eval` and `anban predict` take.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from anban.errors import InputError


def interpolate(f: Mapping[str, Tensor], g: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The state dict alpha f + (1 - alpha) g, of the types of f; what is no floating number (batch counters)
    is f's.

    The mean of two networks is a network only where one was fine-tuned from the other. Statistics of batch
    norms are interpolated too, and fit the result less well than each fitted its own: pass some data through
    it in training mode.

    Args:
        f, g: state dicts of the same network.
        alpha: share of f, 0 to 1.

    Raises:
        InputError: the state dicts differ in names or shapes, or alpha is no share.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"a share of {alpha}", where="alpha", expected="0 to 1")
    different = f.keys() ^ g.keys() or {name for name in f if f[name].shape != g[name].shape}
    if different:
        raise InputError(
            f"two state dicts of different networks: {', '.join(sorted(different)[:4])}",
            expected="the same names and shapes in both",
            do="train the second network from the weights of the first",
        )
    return {
        name: alpha * tensor + (1 - alpha) * g[name].to(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in f.items()
    }


def write_interpolated(f: Path, g: Path, alpha: float, out: Path) -> None:
    """Write the network between two runs (or checkpoints) as a checkpoint with the recipe of the first.

    Raises:
        InputError: see `interpolate`; or there is no such run.
    """
    from anban.tasks.denoise.weights import read_checkpoint  # which interpolates the start of a training

    first, second = read_checkpoint(f), read_checkpoint(g)
    kept = {key: first[key] for key in ("format", "recipe", "config", "seed", "step") if key in first}
    out.parent.mkdir(parents=True, exist_ok=True)
    mixed = interpolate(first["state_dict"], second["state_dict"], alpha)
    torch.save(kept | {"state_dict": mixed}, out)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit("usage: python -m anban.tasks.denoise.interpolation RUN_F RUN_G ALPHA OUT.pt")
    write_interpolated(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
