"""The debug size of denoising recipes: a few generated slices, a narrow network, and runs to start from or learn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from anban.recipe.schema import construct, pick
from anban.tasks.denoise.demo import Scanner, write_demo
from anban.tasks.denoise.protocols import parse_protocol
from anban.tasks.denoise.weights import NETWORKS

SIZE = 48
PATCH = 32
WIDTH = 8


def debug(config: dict[str, Any], folder: Path) -> list[str]:
    """Write tiny data once under `folder`; the overrides that fit any denoising recipe to them."""
    root = write_demo(
        folder / "denoise", train=2, val=1, test=1, slices=1, size=SIZE, scanner=Scanner(views=24)
    )
    protocols = dict.fromkeys(map(_small, config["eval"]["protocols"]))
    splits = dict.fromkeys(s if s in ("train", "val", "test") else "test" for s in config["eval"]["splits"])
    overrides = [f"data.root={json.dumps(str(root))}", "data.train=[train]", "data.val=[val]", "data.test=[test]",
                 "data.values=auto", "data.limit=null", f"data.patch={PATCH}", "data.patches=2", "data.leak=refuse",
                 "train.batch_size=2", "train.accumulate=1", "train.epochs=null", "train.iterations=1",
                 "alternation.generator_steps=1", "alternation.gradients_every=1", "machine.workers=0",
                 f"eval.splits={json.dumps(list(splits))}", f"eval.protocols={json.dumps(list(protocols))}"]  # fmt: skip
    overrides.append("critic.width=4")
    model = _narrowed(config["model"])
    overrides += [
        f"model.{key}={json.dumps(value)}" for key, value in model.items() if value != config["model"][key]
    ]
    for section in ("loss", "noise_loss", "content_loss"):  # ImageNet's weights would have to be fetched
        overrides += [
            f"{section}.{term}.encoder=identity"
            for term in ("texture", "perceptual")
            if term in config[section]
        ]
    runs = folder / "denoise-runs"
    if config["start"]["alpha"] < 1:
        overrides += [f"start.{end}={_run(model, runs / f'{end}.pt')}" for end in ("run", "other")]
    if "distillation" in config["loss"] and config["teacher"]["ema"] is None:
        overrides.append(f"teacher.run={_run(model, runs / 'teacher.pt')}")
    return overrides


def _small(protocol: str) -> str:
    """The same kind of protocol with windows that are smaller than the slices."""
    parsed = parse_protocol(protocol)
    return (
        protocol
        if parsed.size is None
        else protocol.replace(f"{parsed.size}-{parsed.stride}", f"{PATCH}-{PATCH // 2}")
    )


def _narrowed(model: dict[str, Any]) -> dict[str, Any]:
    """The section `model` of a network of the same structure with few channels."""
    if "levels" in model:
        return {**model, "levels": {**model["levels"], "width": WIDTH}}
    return {**model, "width": WIDTH} if "width" in model else model


def _run(model: dict[str, Any], file: Path) -> Path:
    """A checkpoint of such a network, untrained."""
    arguments = {key: value for key, value in model.items() if key != "name"}
    network = construct(pick(NETWORKS, model["name"], "model.name"), arguments)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"config": {"model": model}, "state_dict": network.state_dict()}, file)
    return file
