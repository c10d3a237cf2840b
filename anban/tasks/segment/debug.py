"""The debug size of segmentation recipes: a handful of small generated scenes; networks have what widths they have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from anban.data.scenes import ROLES
from anban.tasks.segment.demo import write_demo
from anban.tasks.segment.protocols import Start, parse_protocol

HEIGHT, WIDTH = 64, 128

# Class sets that can read the demo's labels; a recipe that names another learns the demo's classes instead.
_FITTING = ("cityscapes-19", "cityscapes-20", "demo-19")


def debug(config: dict[str, Any], folder: Path) -> list[str]:
    """Write tiny demo data once under `folder`; the overrides that fit any segmentation recipe to it."""
    root = write_demo(folder / "segment", train=4, val=2, test=2, size=(HEIGHT, WIDTH))
    # Splits that only the recipe's own data have stand for a split that these data have.
    splits = dict.fromkeys(s if s in ROLES else "test" for s in config["eval"]["splits"])
    protocols = dict.fromkeys(map(_small, config["eval"]["protocols"]))
    overrides = [f"data.root={json.dumps(str(root))}", "data.layout=auto", "data.labels=auto", "data.ignore=null",
                 "data.limit=null", "data.tile=null",
                 "data.train=train", "data.val=val", "data.test=test",
                 "train.batch_size=2", "train.accumulate=1", "train.epochs=null", "train.iterations=1",
                 "train.precision=fp32",  # processors emulate fp16, at a hundred times the cost
                 f"train.validate={json.dumps(_small(config['train']['validate']))}",
                 f"eval.splits={json.dumps(list(splits))}", f"eval.protocols={json.dumps(list(protocols))}",
                 "machine.workers=0"]  # fmt: skip
    for name in ("crop", "resize"):
        if name in config["augment"]:
            overrides.append(f"augment.{name}.size={[HEIGHT, WIDTH]}")
    return overrides + _small_network(config)


def _small(protocol: str) -> str:
    """The same kind of protocol with windows that are smaller than the scenes, and two scales for several."""
    parsed = parse_protocol(protocol)
    if parsed.crop:
        parsed = replace(parsed, crop=(HEIGHT, HEIGHT), stride=(HEIGHT // 2, HEIGHT // 2))
    if parsed.start:
        pixels = {"short": (HEIGHT,), "long": (WIDTH,), "size": (HEIGHT, WIDTH)}[parsed.start.side]
        parsed = replace(parsed, start=Start(parsed.start.side, pixels))
    if len(parsed.scales) > 2:
        parsed = replace(parsed, scales=(0.5, 1.0))
    return parsed.name


def _small_network(config: dict[str, Any]) -> list[str]:
    """Classes that the data have, and weights from nowhere."""
    overrides = []
    if config["data"]["classes"] not in _FITTING:
        overrides.append("data.classes=demo-19")
        if config["model"].get("classes") is not None:
            overrides.append("model.classes=19")
    backbone = config["model"].get("backbone")
    if isinstance(backbone, dict) and backbone.get("pretrained"):
        overrides.append("model.backbone.pretrained=false")
    return overrides
