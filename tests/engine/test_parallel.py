"""Two processes, as torchrun starts them, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from anban.record import RunFolder

RECIPE = "change/demo-fc-siam-diff"


def torchrun(
    program: list[str], tiny: list[str], out: Path
) -> tuple[subprocess.CompletedProcess[str], RunFolder | None]:
    """Run a recipe in two processes of `program` (what torchrun starts); the outcome, and the run if one was begun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = ["run", RECIPE, *tiny, "--out", str(out), "--device", "cpu"]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": root}
    command = [*launcher, *program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    runs = list(out.glob("change/*/*/run.json"))
    assert len(runs) <= 1
    return done, RunFolder.open(runs[0].parent) if runs else None


def test_two_processes_count_every_sample_once(tiny: list[str], tmp_path: Path) -> None:
    done, run = torchrun(["-m", "anban"], tiny, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert run is not None
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
    done, run = torchrun([str(script)], tiny, tmp_path / "runs")
    assert done.returncode != 0
    assert run is not None
    told = (run.info["why"] or "") + "".join(f.read_text() for f in run.path.glob("failed-rank*.txt"))
    assert "one of two is ill" in told
    assert run.state in ("failed", "lost")


def test_a_batch_that_cannot_be_shared_is_refused(tiny: list[str], tmp_path: Path) -> None:
    done, _ = torchrun(["-m", "anban"], [*tiny, "train.batch_size=3"], tmp_path)
    assert done.returncode != 0
    assert "cannot be shared by 2 processes" in done.stderr
