"""The debug size of change recipes: a handful of small generated scenes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anban.tasks.change.data import ROLES
from anban.tasks.change.demo import write_demo

SIZE = 64


def debug(config: dict[str, Any], folder: Path) -> list[str]:
    """Write tiny demo data once under `folder`; the overrides that fit any change recipe to it."""
    root = write_demo(folder / "change", train=4, val=2, test=2, size=SIZE)
    overrides = [f"data.root={json.dumps(str(root))}", "data.layout=auto", "data.labels=auto",
                 "data.limit=null", "data.tile=null",
                 "data.train=train", "data.val=val", "data.test=test",
                 "train.batch_size=2", "train.accumulate=1", "train.epochs=null", "train.iterations=1"]  # fmt: skip
    # Splits that only the recipe's own data have stand for a split that these data have.
    splits = dict.fromkeys(s if s in ROLES else "test" for s in config["eval"]["splits"])
    overrides.append(f"eval.splits={json.dumps(list(splits))}")
    for name in ("crop", "resize"):
        if name in config["augment"]:
            overrides.append(f"augment.{name}.size={SIZE}")
    return overrides
