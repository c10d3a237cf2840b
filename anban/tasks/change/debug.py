"""The debug size of change recipes: a handful of small generated scenes, and a narrow, shallow network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anban.data.scenes import ROLES
from anban.tasks.change.demo import write_demo
from anban.tasks.change.protocols import parse_protocol

SIZE = 64
WIDTH = 8
DEPTH = 2


def debug(config: dict[str, Any], folder: Path) -> list[str]:
    """Write tiny demo data once under `folder`; the overrides that fit any change recipe to it."""
    root = write_demo(folder / "change", train=4, val=2, test=2, size=SIZE)
    overrides = [f"data.root={json.dumps(str(root))}", "data.layout=auto", "data.labels=auto",
                 "data.limit=null", "data.tile=null",
                 "data.train=train", "data.val=val", "data.test=test",
                 "train.batch_size=2", "train.accumulate=1", "train.epochs=null", "train.iterations=1",
                 "machine.workers=0"]  # fmt: skip
    # Splits that only the recipe's own data have stand for a split that these data have.
    splits = dict.fromkeys(s if s in ROLES else "test" for s in config["eval"]["splits"])
    protocols = dict.fromkeys(map(_small_windows, config["eval"]["protocols"]))
    overrides += [f"eval.splits={json.dumps(list(splits))}", f"eval.protocols={json.dumps(list(protocols))}"]
    for name in ("crop", "resize"):
        if name in config["augment"]:
            overrides.append(f"augment.{name}.size={SIZE}")
    return overrides + _small_network(config["model"])


def _small_windows(protocol: str) -> str:
    """The same kind of protocol with windows no larger than the scenes, which would be padded to them."""
    parsed = parse_protocol(protocol)
    names = {"whole": "whole", "tiles": f"tiles-{SIZE}", "sliding": f"sliding-{SIZE}-{SIZE // 2}"}
    return names[parsed.tiling] + ("+flip" if parsed.flips else "")


def _small_network(model: dict[str, Any]) -> list[str]:
    """Overrides of a network's sizes, where it has such; its structure stays."""
    overrides = []
    if isinstance(model.get("dims"), int):
        overrides.append(f"model.dims={WIDTH}")
    if isinstance(model.get("depths"), list):
        overrides.append(f"model.depths={[min(depth, DEPTH) for depth in model['depths']]}")
    return overrides
