"""Real pictures: minutes of training, so only `make test-slow` runs them, where ANBAN_DATA is set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from anban.engine.run import execute
from anban.recipe import load_recipe

DATA = Path(os.environ.get("ANBAN_DATA", "unset")) / "change" / "levir_cd_256"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="ANBAN_DATA is not set, or holds no change/levir_cd_256"),
]


@pytest.mark.parametrize("recipe", ["change/levir-sample-overfit", "change/levir-stnet-lite-overfit"])
def test_eight_real_pairs_are_learnt_by_heart(recipe: str, tmp_path: Path) -> None:
    run = execute(load_recipe(recipe, [f"data.root={DATA}"]), tmp_path, device="cpu")
    scores = {line["name"]: line["value"] for line in run.info["scores"]}
    assert scores["f1"] >= 0.95
