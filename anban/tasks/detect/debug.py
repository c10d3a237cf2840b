"""The debug size of detection recipes: a handful of small generated pictures, and networks of few channels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anban.data.scenes import ROLES
from anban.tasks.detect.demo import CLASSES, write_demo
from anban.tasks.detect.protocols import parse_protocol

SIZE = 64


def debug(config: dict[str, Any], folder: Path) -> list[str]:
    """Write tiny demo data once under `folder`; the overrides that fit any detection recipe to it."""
    root = write_demo(folder / "detect", train=4, val=2, test=2, size=SIZE)
    splits = dict.fromkeys(s if s in ROLES else "test" for s in config["eval"]["splits"])
    protocols = dict.fromkeys(map(_small, config["eval"]["protocols"]))
    overrides = [f"data.root={json.dumps(str(root))}", "data.layout=auto", f"data.classes={json.dumps(list(CLASSES))}",
                 "data.train=train", "data.val=val", "data.test=test", "data.pictures=null", "data.limit=null",
                 "data.empty=true", f"model.classes={len(CLASSES)}", "init.path=null",
                 "train.batch_size=2", "train.accumulate=1", "train.epochs=null", "train.iterations=1",
                 f"train.validate={_small(config['train']['validate'])}",
                 f"eval.splits={json.dumps(list(splits))}", f"eval.protocols={json.dumps(list(protocols))}",
                 "machine.workers=0"]  # fmt: skip
    resize = config["augment"].get("resize")
    if resize and resize["size"] is not None:
        overrides.append(f"augment.resize.size={SIZE}")
    elif resize:
        overrides += [f"augment.resize.short={SIZE}", f"augment.resize.longest={2 * SIZE}"]
    if "crop" in config["augment"]:
        overrides.append(f"augment.crop.size={SIZE}")
    return overrides + _small_network(config["model"])


def _small(protocol: str) -> str:
    """The same kind of protocol at the pictures' size."""
    parsed = parse_protocol(protocol)
    if parsed.size is not None:
        return f"size-{SIZE}"
    return "whole" if parsed.short is None else f"short-{SIZE}-{2 * SIZE}"


def _small_network(model: dict[str, Any]) -> list[str]:
    """A width of eight channels for each head and a block for each stage; weights from nowhere."""
    overrides = ["model.pretrained=false"] if model.get("pretrained") else []
    if isinstance(detector := model.get("detector"), dict):
        overrides += ["model.detector.width=16", "model.detector.depth=1"]
        overrides += [f"model.detector.detections={min(20, detector['detections'])}"]
    if isinstance(backbone := model.get("backbone"), dict):
        widths = [8 * heads for heads in backbone["heads"]]
        overrides += [f"model.backbone.widths={widths}", f"model.backbone.depths={[1] * len(widths)}",
                      f"model.backbone.mlp_ratios={[2.0] * len(widths)}"]  # fmt: skip
    return overrides
