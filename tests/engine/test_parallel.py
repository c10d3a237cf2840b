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


def test_the_record_says_which_process_failed(tiny: list[str], tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(
        "import os, sys\n"
        "from anban.tasks.contract import Task\n"
        "real = Task.update\n"
        "def update(self, batches, updater):\n"
        "    if os.environ['RANK'] == '1':\n"
        "        raise RuntimeError('one of two is ill')\n"
        "    return real(self, batches, updater)\n"
        "Task.update = update\n"
        "from anban.cli.main import main\n"
        "main()\n"
    )
    out = tmp_path / "runs"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
    ]
    arguments = ["run", RECIPE, *tiny, "--out", str(out), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*command, *arguments], capture_output=True, timeout=300, env=environment, check=False
    )
    assert done.returncode != 0
    run = RunFolder.open(next(out.glob("change/*/*/run.json")).parent)
    told = (run.info["why"] or "") + "".join(f.read_text() for f in run.path.glob("failed-rank*.txt"))
    assert "one of two is ill" in told
    assert run.state in ("failed", "lost")


@pytest.mark.parametrize("batch", [3])
def test_a_batch_that_cannot_be_shared_is_refused(batch: int, tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="cannot be shared by 2 processes"):
        torchrun(
            ["run", RECIPE, *tiny, f"train.batch_size={batch}", "--out", str(tmp_path), "--device", "cpu"],
            tmp_path,
        )
