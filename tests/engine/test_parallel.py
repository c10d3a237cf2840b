"""Two processes, as torchrun starts them, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anban.record import RunFolder

RECIPE = "change/demo-fc-siam-diff"


def torchrun(arguments: list[str], folder: Path) -> RunFolder:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "anban",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs = list(folder.glob("change/*/*/run.json"))
    assert len(runs) == 1
    return RunFolder.open(runs[0].parent)


def test_two_processes_count_every_sample_once(tiny: list[str], tmp_path: Path) -> None:
    run = torchrun(["run", RECIPE, *tiny, "--out", str(tmp_path), "--device", "cpu"], tmp_path)
    assert run.info["state"] == "finished"
    names = [s["name"] for s in run.samples("test", "whole")]
    assert names == ["test_0000.png", "test_0001.png"]
    command = [sys.executable, "-m", "anban", "eval", str(run.path), "--json", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    alone = json.loads(done.stdout)[0]["scores"]
    assert alone == {s["name"]: s["value"] for s in run.info["scores"]}
    again = RunFolder.open(run.path)
    assert again.samples("test", "whole") == run.samples("test", "whole")


@pytest.mark.parametrize("batch", [3])
def test_a_batch_that_cannot_be_shared_is_refused(batch: int, tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="cannot be shared by 2 processes"):
        torchrun(
            ["run", RECIPE, *tiny, f"train.batch_size={batch}", "--out", str(tmp_path), "--device", "cpu"],
            tmp_path,
        )
