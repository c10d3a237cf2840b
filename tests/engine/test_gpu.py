"""What only a CUDA device can show (`make test-gpu`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anban.engine.run import execute, open_run
from anban.recipe import load_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("network", ["fc-siam-diff", "tinycd", "bit"])
def test_every_network_trains_in_every_precision(
    network: str, precision: str, tiny: list[str], tmp_path: Path
) -> None:
    overrides = [*tiny, f"model=change/{network}", f"train.precision={precision}", "machine.profile=true"]
    run = execute(load_recipe("change/demo-fc-siam-diff", overrides), tmp_path, device="cuda")
    assert run.info["state"] == "finished"
    assert run.info["efficiency"]["peak_memory_mb"] > 0
    assert run.info["time"]["peak_memory_mb"] > 0
    losses: list[Any] = [m["value"] for m in run.metrics() if m["name"] == "loss"]
    assert len(losses) == 4


def test_a_run_on_the_gpu_can_go_on(tiny: list[str], tmp_path: Path) -> None:
    run = execute(load_recipe("change/demo-fc-siam-diff", tiny), tmp_path, device="cuda")
    earlier, recipe = open_run(run.path, ["train.iterations=6"])
    assert execute(recipe, tmp_path, device="cuda", resume=earlier).info["progress"]["step"] == 6
