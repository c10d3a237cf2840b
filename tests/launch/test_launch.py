"""Planned runs and what is handed to a cluster, on a machine without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from anban.cli.main import app
from anban.engine.loop import Loop
from anban.engine.progress import Console
from anban.errors import InputError
from anban.launch.jobs import RunJob, report_job
from anban.launch.slurm import is_waited_for, minutes, read_options
from anban.record import RunFolder

RECIPE = "change/demo-fc-siam-diff"
STUDY = """
title: Two arms
question: Is a folder all that a job needs?
base: change/demo-fc-siam-diff
arms:
  no-flip: {set: {augment.flip: null}}
seeds: 1
"""


@pytest.fixture(autouse=True)
def _log_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands would send the log to the stderr of this test, which is closed after it."""
    monkeypatch.setattr(Console, "to", lambda *_, **__: None)


def printed(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.exception
    return result.stdout


def refusal(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, InputError), result.output
    return str(result.exception)


def test_a_run_is_planned_and_begun_from_the_command_line(tiny: list[str], tmp_path: Path) -> None:
    out = ("--out", tmp_path, "--device", "cpu")
    folder = Path(printed("run", RECIPE, *tiny, "--plan", "--remark", "tonight", *out).strip())
    info = RunFolder.open(folder).info
    assert (info["state"], info["remark"], info["seconds"]) == ("planned", "tonight", None)
    assert (folder / "recipe.yaml").is_file()
    assert Path(printed("run", "--resume", folder.name, *out).strip()) == folder
    assert RunFolder.open(folder).info["state"] == "finished"
    assert "nothing to plan" in refusal("run", "--resume", folder, "--plan", *out)


@pytest.fixture
def script(tiny: list[str], tmp_path: Path) -> str:
    """What `--print` prints for a study of two runs, whose folders lie in tmp_path/runs."""
    (tmp_path / "two.yaml").write_text(STUDY)
    words = ("time=1-2", "partition=main", "gpus=1", "cpus=4", "parallel=1", "qos=low", "gres=disk:1")
    options = [part for word in words for part in ("--slurm", word)]
    return printed("study", tmp_path / "two.yaml", *tiny, "--out", tmp_path / "runs", "--device", "cpu",
                   "--launcher", "slurm", *options, "--print")  # fmt: skip


def folders(tmp_path: Path) -> list[RunFolder]:
    return [RunFolder.open(file.parent) for file in sorted(tmp_path.glob("runs/change/*/*/run.json"))]


def test_the_printed_script_submits_the_planned_runs_and_their_report(script: str, tmp_path: Path) -> None:
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    runs, report = script.split("sbatch --parsable --dependency=afterany:${array%%;*}")
    for line in (
        "--array=0-1%1",
        "--time=1560",
        "--gpus-per-node=1",
        "--qos=low",
        "--requeue",
        "--gres=disk:1",
    ):
        assert f"#SBATCH {line}\n" in runs
    for line in ("--time=60", "--partition=main", "--qos=low"):
        assert f"#SBATCH {line}\n" in report
    for word in ("gpus", "gres", "array=", "cpus"):
        assert word not in report
    assert 'anban.launch.jobs run "${runs[$SLURM_ARRAY_TASK_ID]}" cpu' in runs
    planned = folders(tmp_path)
    assert [run.state for run in planned] == ["planned"] * 2
    assert all(f"  {run.path}\n" in runs for run in planned)


def test_jobs_need_only_their_folders(script: str, tiny: list[str], tmp_path: Path) -> None:
    study = tmp_path / "runs" / "studies" / "local" / "two" / "study.json"
    for run in folders(tmp_path):
        RunJob("cpu")(str(run.path))
    metrics = [run.metrics() for run in folders(tmp_path)]
    RunJob("cpu")(str(folders(tmp_path)[0].path))  # a job that comes late finds its run finished
    assert [run.metrics() for run in folders(tmp_path)] == metrics
    report_job(str(study))
    states = [line["state"] for arm in json.loads(study.read_text())["arms"] for line in arm["runs"]]
    assert states == ["finished"] * 2
    assert "Two arms" in (study.parent / "report" / "report.html").read_text(encoding="utf-8")
    said = printed("study", tmp_path / "two.yaml", *tiny, "--out", tmp_path / "runs",
                   "--launcher", "slurm", "--slurm", "time=5", "--resume")  # fmt: skip
    assert said.startswith("nothing to submit")


def test_a_stopped_job_outside_of_a_queue_just_ends(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loop, "train", interrupted)
    run = folders(tmp_path)[0]
    with pytest.raises(SystemExit) as end:
        RunJob("cpu")(str(run.path))
    assert end.value.code == 130
    assert RunFolder.open(run.path).info["state"] == "interrupted"


def interrupted(*_: Any) -> None:
    from anban.engine.stop import Interrupted

    raise Interrupted("stopped after step 1 of 4")


def test_what_waits_in_the_queue_is_not_submitted_again(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "change/tiny", seed=0, info={"commit": None}, state="planned")
    assert not is_waited_for(run, {"12_3"})
    run.update(state="queued", job="12_3")
    assert is_waited_for(run, {"12_3"})
    assert not is_waited_for(run, {"12_4"})
    run.update(state="running", job=None)
    assert is_waited_for(run, set())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("1:30", 2), ("2:00:00", 120), ("1-0", 1440), ("1-2:30", 1590), ("0-0:0:1", 1)],
)
def test_times_are_read_as_sbatch_reads_them(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["time=10", "partitoin=main"], "did you mean 'partition'"),
        (["partition=main"], "needs a time limit"),
        (["time=tomorrow"], "'tomorrow' is no time"),
        (["time=5", "cpus=two"], "'two' is no number"),
        (["time=5", "time=6"], "each key once"),
        (["time"], "key=value"),
    ],
)
def test_mistakes_in_options_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        read_options(words)
    assert message in str(error.value)


def test_what_cannot_be_launched_is_refused(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("study", RECIPE, *tiny, "--seeds", 1, "--out", tmp_path)
    assert "did you mean 'slurm'" in refusal(*words, "--launcher", "slrum")
    assert "add --launcher slurm" in refusal(*words, "--slurm", "time=5")
    assert "add --launcher slurm" in refusal(*words, "--print")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("PATH", str(tmp_path))
    message = refusal(*words, "--launcher", "slurm", "--slurm", "time=5")
    assert "sbatch is not found" in message
    assert "--print" in message
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.delitem(sys.modules, "anban.launch.slurm")
    monkeypatch.delattr("anban.launch.slurm")
    assert "pip install anban[slurm]" in refusal(*words, "--launcher", "slurm", "--slurm", "time=5")
