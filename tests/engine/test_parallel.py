"""Several processes on the CPU: what they compute is what one does, and what becomes of a run when one of them fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from anban.record import RunFolder

ROOT = Path(__file__).parents[2]
TASKS = ("change", "segment", "detect", "denoise")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that processes.py has filled."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, str(Path(__file__).with_name("processes.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def outcomes(results: Path, case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of one process and of two."""
    alone, both = (torch.load(results / f"{case}-{world}.pt") for world in (1, 2))
    assert alone["states"].keys() == both["states"].keys()
    return alone, both


def apart(alone: dict[str, Any], both: dict[str, Any], *, without: str = "-") -> float:
    """The largest difference between weights and buffers, but for those with a word in their name."""
    return max(
        float((value.double() - both["states"][name].double()).abs().max())
        for name, value in alone["states"].items()
        if without not in name
    )


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_train_as_one_does(results: Path, task: str) -> None:
    """With micro-batches, an average of the weights, clipping and, in denoising, a critic with its own optimiser."""
    alone, both = outcomes(results, f"{task}-together")
    assert both["losses"] == pytest.approx(alone["losses"], rel=1e-6)  # logged in single precision
    assert apart(alone, both) < 1e-9


@pytest.mark.parametrize("task", TASKS)
def test_batch_norms_see_their_own_process_unless_synchronised(results: Path, task: str) -> None:
    alone, both = outcomes(results, f"{task}-apart")
    if task == "detect":  # which has none
        assert apart(alone, both) < 1e-9
    else:
        assert apart(alone, both, without="running") > 1e-4
        assert apart(alone, both) > 1e-2


@pytest.mark.parametrize("settings", ["together", "apart"])
@pytest.mark.parametrize("task", TASKS)
def test_every_sample_is_counted_once(results: Path, task: str, settings: str) -> None:
    alone, both = outcomes(results, f"{task}-{settings}")
    assert len(json.loads(alone["records"])) >= 2
    assert both["records"] == alone["records"]


@pytest.mark.parametrize(
    ("fault", "who", "ends", "why"),
    [
        ("error", 1, [1, 1], ": ValueError: one of two is ill"),
        ("killed", 1, [1, -9], " is gone: killed, by someone or by the system for want of memory"),
        ("leader-killed", 0, [-9, 1], " is gone: killed, by someone or by the system for want of memory"),
    ],
)
def test_a_process_that_fails_ends_all_with_one_message(
    results: Path, fault: str, who: int, ends: list[int], why: str
) -> None:
    folder = results / fault
    assert json.loads((folder / "ends.json").read_text()) == ends
    (file,) = folder.glob("change/*/*/run.json")
    run = RunFolder.open(file)
    assert run.state == "failed"
    assert run.info["why"].startswith(f"process {who} of 2 (pid ")
    assert run.info["why"].endswith(f" on {run.info['host']}){why}")
    assert (run.checkpoints / "last.pt").is_file()
    told = [(folder / f"stderr-{rank}.txt").read_text() for rank in (0, 1)]
    assert ["anban: " in text or "ERROR" in text for text in told].count(True) == 1
    assert f"process {who} of 2" in "".join(told)
    assert "Connection closed" not in "".join(told)


@pytest.mark.parametrize("overrides", [["train.batch_size=3"], ["train.accumulate=2", "train.batch_size=2"]])
def test_a_batch_that_cannot_be_shared_is_refused(
    tiny: list[str], overrides: list[str], monkeypatch: Any
) -> None:
    from anban.engine import parallel
    from anban.engine.run import prepare
    from anban.errors import InputError
    from anban.recipe import load_recipe

    monkeypatch.setattr(parallel, "world", lambda: 2)
    with pytest.raises(InputError, match="cannot be shared by 2 processes"):
        prepare(load_recipe("change/demo-fc-siam-diff", [*tiny, *overrides]), torch.device("cpu"))


def test_norms_with_a_way_of_their_own_are_not_synchronised(monkeypatch: pytest.MonkeyPatch) -> None:
    from anban.engine import parallel
    from anban.engine.sync_norm import synchronise
    from anban.errors import InputError
    from anban.tasks.segment.models.common import PositiveBatchNorm2d

    network = torch.nn.Sequential(PositiveBatchNorm2d(2))
    synchronise(network, torch.device("cpu"))  # one process has nothing to synchronise
    monkeypatch.setattr(parallel, "world", lambda: 2)
    with pytest.raises(InputError, match="PositiveBatchNorm2d cannot be synchronised"):
        synchronise(network, torch.device("cpu"))


# Through torchrun ---------------------------------------------------------------------------------------------------

KILLED_ONCE = """
import os, signal
from anban.tasks.contract import Task
update = Task.update

def updated(self, *given):
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"], self.step) == ("1", "0", 2):
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, *given)

Task.update = updated
from anban.cli.main import main
main()
"""


def torchrun(options: list[str], recipe: str, overrides: list[str], out: Path) -> RunFolder:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    command = [*launcher, "run", recipe, *overrides, "--out", str(out), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = out.glob("*/*/*/run.json")
    return RunFolder.open(file)


def test_processes_that_torchrun_starts_anew_go_on_with_the_run(tiny: list[str], tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED_ONCE)
    run = torchrun(["--max-restarts=1", str(script)], "change/demo-fc-siam-diff", tiny, tmp_path / "runs")
    assert run.info["state"] == "finished"
    assert len(run.info["resumed"]) == 1
    assert "going on from step 2" in (run.path / "log.txt").read_text()
    steps = [
        line["step"]
        for line in run.metrics(dedupe=False)
        if (line["split"], line["name"]) == ("train", "loss")
    ]
    assert steps == [1, 2, 3, 4]
    assert not list(run.path.glob("failed-rank*.txt"))
    assert [s["name"] for s in run.samples("test", "whole")] == ["test_0000.png", "test_0001.png"]
    command = [sys.executable, "-m", "anban", "eval", str(run.path), "--json", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=True)
    alone = json.loads(done.stdout)[0]["scores"]
    assert alone == {s["name"]: s["value"] for s in run.info["scores"]}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_torchrun_trains_every_task(task: str, tmp_path: Path) -> None:
    import importlib

    from anban.recipe import load_recipe

    recipe = {
        "change": "change/demo-fc-siam-diff",
        "segment": "seg/demo-bisenet",
        "detect": "det/demo-pvt",
        "denoise": "ct/dis-gan",
    }[task]
    debug = importlib.import_module(f"anban.tasks.{task}.debug").debug
    overrides = [
        *debug(load_recipe(recipe).config, tmp_path),
        "train.iterations=2",
        "train.sync_batch_norm=true",
    ]
    run = torchrun(["-m", "anban"], recipe, overrides, tmp_path / "runs")
    assert run.info["state"] == "finished"
    counted = [(line["split"], line["protocol"], line["name"]) for line in run.samples(checkpoint="best")]
    assert len(counted) == len(set(counted)) >= 1
