"""A study on a real SLURM (make test-slurm): signals, kills and time limits leave the same weights and one report."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # the cluster stands beside the tests and is no package

from cluster import Cluster, wait_for

from anban.engine import checkpoint
from anban.engine.run import execute
from anban.record import Ledger, RunFolder
from anban.study.study import load_plan

pytestmark = pytest.mark.slurm

STUDY = """
title: Four arms
question: Do they all come to their end?
base: change/demo-fc-siam-diff
arms:
  no-flip: {set: {augment.flip: null}}
  no-photometric: {set: {augment.photometric: null}}
  bce-only: {set: {loss.dice: null}}
seeds: 2
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def submitted(cluster: Cluster, *words: object) -> str:
    command = [sys.executable, "-m", "anban", "study", *map(str, words), "--launcher", "slurm"]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def steps(run: RunFolder) -> int:
    return sum(line["name"] == "loss" for line in run.metrics())


def wait_until_training(run: RunFolder) -> None:
    wait_for(f"training in {run.path}", lambda: steps(run) >= 3, 240)


def wait_for_jobs(cluster: Cluster) -> None:
    wait_for("end of the queue", lambda: not cluster.ask("squeue", "--noheader"), 600)


def states(study: Path) -> list[str]:
    return [line["state"] for arm in json.loads(study.read_text())["arms"] for line in arm["runs"]]


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = checkpoint.load(run.checkpoints / "last.pt")["modules"]["model"]
    return state


@pytest.fixture(scope="module")
def changes(tiny: list[str]) -> list[str]:
    return [*tiny, "train.iterations=30", "train.eval_every=15", "machine.checkpoint_every=5"]


@pytest.fixture(scope="module")
def finished(
    cluster: Cluster, changes: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[RunFolder], str]:
    """study.json, runs and printed line of a study in whose course the first run was stopped and the second killed."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "four.yaml").write_text(STUDY)
    said = submitted(
        cluster, folder / "four.yaml", *changes, "--out", folder, "--slurm", "time=30", "--slurm", "cpus=1"
    )
    study = folder / "studies" / "local" / "four" / "study.json"
    runs = sorted(
        (RunFolder.open(p.parent) for p in folder.glob("change/*/*/run.json")), key=lambda r: r.info["job"]
    )
    assert [run.info["job"].partition("_")[2] for run in runs] == list("01234567")
    assert states(study) == ["queued"] * 8
    assert [row["state"] for row in Ledger(folder).rows()].count("queued") >= 6  # two may have begun
    stopped, killed = runs[:2]
    wait_until_training(stopped)
    cluster.ask(
        "scancel", "--signal=TERM", f"{stopped.info['job']}.0"
    )  # its step 0, which is what srun started
    wait_until_training(killed)
    os.kill(RunFolder.open(killed.path).info["pid"], signal.SIGKILL)
    wait_for(
        "end of the killed job",
        lambda: "JobState=FAILED" in cluster.ask("scontrol", "show", "job", killed.info["job"]),
        60,
    )
    cluster.ask("scontrol", "requeue", killed.info["job"])
    assert not (study.parent / "report").exists()
    wait_for_jobs(cluster)
    return study, [RunFolder.open(run.path) for run in runs], said


def test_every_run_finishes_and_the_last_job_reports(finished: tuple[Path, list[RunFolder], str]) -> None:
    study, runs, said = finished
    assert [run.info["state"] for run in runs] == ["finished"] * 8
    assert states(study) == ["finished"] * 8
    report = re.search(r"job (\d+) writes (\S+)", said)
    assert report is not None
    page = Path(report[2]).read_text(encoding="utf-8")
    assert all(run.id in page for run in runs)
    assert "report.html" in (study.parent / "slurm" / f"{report[1]}_0_log.err").read_text()
    assert "Four arms" in page


def test_a_stopped_and_a_killed_run_end_with_the_weights_of_an_undisturbed_one(
    finished: tuple[Path, list[RunFolder], str], changes: list[str], tmp_path: Path
) -> None:
    study, runs, _ = finished
    plan = load_plan(str(study.parents[3] / "four.yaml"), changes)
    for run, arm in zip(runs[:2], plan.arms[:2], strict=True):
        assert len(run.info["resumed"]) == 1
        undisturbed = execute(arm.recipe.with_seed(0), tmp_path, device="cpu")
        assert run.info["hash"] == undisturbed.info["hash"]
        left, right = weights(run), weights(undisturbed)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
        assert run.info["scores"] == undisturbed.info["scores"]
    assert all("resumed" not in run.info for run in runs[2:])


def test_a_printed_script_a_cancelled_job_and_a_time_limit(
    cluster: Cluster, tiny: list[str], tmp_path: Path
) -> None:
    words = ["change/demo-fc-siam-diff", *tiny, "train.iterations=100000", "train.eval_every=100000"]
    words += ["machine.workers=1", "--seeds", "1", "--out", str(tmp_path)]
    words += ["--slurm", "time=1", "--slurm", "grace=35"]  # SLURM looks at limits every 30 s
    script = submitted(cluster, *words, "--print")
    run = RunFolder.open(next(tmp_path.glob("change/*/*/run.json")))
    assert run.state == "planned"

    printed = subprocess.run(
        ["bash"], input=script, env=cluster.environment, capture_output=True, text=True, check=True
    ).stdout.split()[0]
    wait_until_training(run)
    cluster.ask("scancel", printed)
    wait_for_jobs(cluster)
    cancelled = RunFolder.open(run.path).info
    assert (cancelled["state"], cancelled["job"]) == ("interrupted", f"{printed}_0")
    assert (tmp_path / "studies" / "change" / "demo-fc-siam-diff" / "report" / "report.html").is_file()

    array = submitted(cluster, *words, "--resume").split()[1]

    def parts() -> list[str]:
        return [part["job"] for part in RunFolder.open(run.path).info.get("resumed", [])]

    wait_for("resumption", lambda: array in parts(), 240)
    assert submitted(cluster, *words, "--resume").startswith("nothing to submit")
    wait_for("return after the time limit", lambda: parts().count(array) > 1, 400)
    before = steps(run)
    wait_for("further training", lambda: steps(run) > before, 240)
    cluster.ask("scancel", array)
    wait_for_jobs(cluster)
    done = [line["step"] for line in run.metrics(dedupe=False) if line["name"] == "loss"]
    assert done == list(range(1, len(done) + 1))  # no step is lost or done twice
