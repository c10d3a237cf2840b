"""The loop through the real path: recipe in, run folder out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from anban.engine import checkpoint
from anban.engine.loop import Diverged, Interrupted, Loop
from anban.engine.run import execute, latest_unfinished, make_task, open_run, plan, prepare
from anban.engine.stop import stop_signal
from anban.engine.trained import evaluate_trained, load_trained
from anban.errors import InputError
from anban.recipe import load_recipe
from anban.record import Ledger, RunFolder
from anban.ssm import selective_scan
from anban.tasks.change.models import MODELS
from anban.tasks.change.models.fc import FCSiamDiff

RECIPE = "change/demo-fc-siam-diff"


def numbers(run: RunFolder) -> dict[tuple[Any, ...], Any]:
    """Every metric of a run except the clock."""
    return {(m["step"], m["split"], m["protocol"], m["name"]): m["value"] for m in run.metrics()}


def same_weights(a: Path, b: Path) -> bool:
    left, right = (checkpoint.load(p / "checkpoints" / "last.pt")["modules"]["model"] for p in (a, b))
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.fixture(scope="module")
def finished(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    recipe = load_recipe(RECIPE, [*tiny, "machine.profile=true"])
    return execute(recipe, tmp_path_factory.mktemp("runs"), device="cpu")


def test_a_run_leaves_everything_behind(finished: RunFolder) -> None:
    info = finished.info
    assert info["state"] == "finished"
    assert info["why"] is None
    assert {s["name"] for s in info["scores"]} == {"precision", "recall", "f1", "iou", "oa", "kappa", "miou"}
    assert info["protocols"]["test/whole"]["size"] == "64x64"
    assert info["progress"]["step"] == info["progress"]["steps"] == 4
    assert info["efficiency"]["parameters"] == info["model"]["parameters"] == 1350146
    assert info["efficiency"]["input"] == "2 x 1x3x256x256"
    assert 0 <= info["time"]["data_wait_share"] <= 1
    assert info["data"]["splits"] == {"train": 4, "val": 2, "test": 2}
    for name in ("recipe.yaml", "metrics.jsonl", "samples.jsonl", "log.txt", "checkpoints/last.pt"):
        assert (finished.path / name).stat().st_size > 0, name
    assert list(finished.path.glob("events.out.tfevents.*"))
    assert [m["step"] for m in finished.metrics() if m["name"] == "loss"] == [1, 2, 3, 4]
    assert sum(m["split"] == "val" and m["name"] == "f1" for m in finished.metrics()) == 2
    samples = finished.samples("test", "whole")
    assert len(samples) == 2
    total = sum(sum(s["counts"].values()) for s in samples)
    assert total == 2 * 64 * 64
    index = json.loads((finished.figures / "samples" / "index.json").read_text())
    for sample in index["samples"]:
        for picture in ("a", "b", "label", "probability"):
            assert (finished.figures / "samples" / sample["folder"] / f"{picture}.png").is_file()
    assert Ledger(finished.path.parents[2]).rows()[0]["state"] == "finished"


def test_a_run_twice_is_the_same_run(finished: RunFolder, tiny: list[str], tmp_path: Path) -> None:
    again = execute(load_recipe(RECIPE, [*tiny, "machine.workers=2"]), tmp_path, device="cpu")
    assert numbers(again) == numbers(finished)
    assert same_weights(again.path, finished.path)
    other = execute(load_recipe(RECIPE, tiny, seed=1), tmp_path, device="cpu")
    assert numbers(other) != numbers(finished)


CHILD = """
import sys
from pathlib import Path
from anban.engine.run import execute
from anban.recipe import load_recipe
if __name__ == "__main__":
    execute(load_recipe(sys.argv[1], sys.argv[3:]), Path(sys.argv[2]), device="cpu")
"""


#: Networks whose resumption is shown in every run of the tests, each with what makes it small; `slow` shows the others.
SHOWN = {"fc-ef": [], "tinycd": [], "bit": [], "stnet": ["model.dims=8", "model.depths=[1, 1, 1, 1]"]}


@pytest.mark.parametrize(
    "network", [n if n in SHOWN else pytest.param(n, marks=pytest.mark.slow) for n in sorted(MODELS)]
)
def test_a_killed_run_goes_on_bit_for_bit(network: str, tiny: list[str], tmp_path: Path) -> None:
    overrides = [
        *tiny,
        f"model=change/{network}",
        *SHOWN.get(network, []),
        "train.iterations=6",
        "train.eval_every=4",
        "train.ema=0.9",
    ]
    recipe = load_recipe(RECIPE, overrides)
    whole = execute(recipe, tmp_path / "whole", device="cpu")
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    command = [sys.executable, str(script), RECIPE, str(tmp_path / "killed"), *overrides]
    with subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
    ) as child:
        limit = time.monotonic() + 120
        while time.monotonic() < limit and child.poll() is None:
            lines = [f.read_text().count('"loss"') for f in tmp_path.glob("killed/change/*/*/metrics.jsonl")]
            if lines and lines[0] >= 3:
                break
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    path = latest_unfinished(recipe, tmp_path / "killed")
    assert path is not None
    assert RunFolder.open(path).state == "lost"
    step = checkpoint.load(path / "checkpoints" / "last.pt")["step"]
    assert 2 <= step < 6, "the kill came too late to show anything"
    run, stored = open_run(path, [])
    resumed = execute(stored, tmp_path / "killed", device="cpu", resume=run)
    assert resumed.path == path
    assert resumed.info["state"] == "finished"
    assert numbers(resumed) == numbers(whole)
    assert same_weights(resumed.path, whole.path)
    assert resumed.info["scores"] == whole.info["scores"]


def test_stopping_keeps_the_last_step(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def record(self: Loop, *arguments: Any) -> None:
        seen.append(self.done.step)
        if self.done.step == 3 and len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Loop, "_log_step", record)
    with pytest.raises(Interrupted, match="step 3 of 4"):
        execute(load_recipe(RECIPE, [*tiny, "machine.checkpoint_every=100"]), tmp_path, device="cpu")
    path = next(tmp_path.glob("change/*/*/run.json")).parent
    assert RunFolder.open(path).info["state"] == "interrupted"
    assert checkpoint.load(path / "checkpoints" / "last.pt")["step"] == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_schedulers_signal_is_heard_like_ctrl_c(number: int) -> None:
    before = signal.getsignal(number)
    with stop_signal() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
    assert signal.getsignal(number) is before


def fail(message: str, *, stopped: bool) -> None:
    with stop_signal():
        if stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError(message)


def test_a_signal_that_ends_the_loaders_first_is_no_failure() -> None:
    """SIGTERM goes to all processes of a job."""
    gone = "DataLoader worker (pid 7) is killed by signal: Terminated. "
    with pytest.raises(Interrupted, match="while data were loaded"):
        fail(gone, stopped=True)
    with pytest.raises(RuntimeError, match="pid 7"):
        fail(gone, stopped=False)
    with pytest.raises(RuntimeError, match="memory"):
        fail("out of memory", stopped=True)


def test_a_planned_run_begins_in_its_folder(
    finished: RunFolder, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(RECIPE, tiny)
    planned = plan(recipe, tmp_path, remark="tonight, on the left")
    before = dict(planned.info)
    assert before["state"] == "planned"
    assert latest_unfinished(recipe, tmp_path) == planned.path
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run, stored = open_run(planned.path, [])
    ended = execute(stored, tmp_path, device="cpu", resume=run)
    assert ended.path == planned.path
    assert numbers(ended) == numbers(finished)
    assert (ended.info["hash"], ended.info["difference"]) == (before["hash"], before["difference"])
    assert [ended.info[key] for key in ("state", "remark", "job")] == ["finished", before["remark"], "7"]
    assert ended.info["started"] > before["started"]
    assert "resumed" not in ended.info
    assert Ledger(tmp_path).rows()[0]["remark"] == "tonight, on the left"


def test_only_the_length_of_a_run_may_change(finished: RunFolder, tiny: list[str]) -> None:
    with pytest.raises(InputError, match="finished"):
        open_run(finished.path, [])
    with pytest.raises(InputError, match=r"cannot change optimizer\.lr"):
        open_run(finished.path, ["optimizer.lr=1"])
    _, recipe = open_run(finished.path, ["train.iterations=6", "machine.workers=1"])
    assert recipe.config["train"]["iterations"] == 6


def test_a_run_can_be_extended(tiny: list[str], tmp_path: Path) -> None:
    first = execute(load_recipe(RECIPE, tiny), tmp_path, device="cpu")
    run, recipe = open_run(first.path, ["train.iterations=5"])
    longer = execute(recipe, tmp_path, device="cpu", resume=run)
    assert longer.path == first.path
    assert longer.info["progress"]["step"] == 5
    assert longer.info["resumed"]


def test_a_diverging_loss_ends_the_run_with_its_row(tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"step \d"):
        execute(
            load_recipe(RECIPE, [*tiny, "optimizer.lr=1e30", "optimizer.weight_decay=1e30"]),
            tmp_path,
            device="cpu",
        )
    row = Ledger(tmp_path).rows()[0]
    assert row["state"] == "failed"
    assert row["outcome"] == "diverged"
    assert "is not finite after step 1" in row["why"]


def test_a_full_disk_ends_the_run_and_it_can_go_on(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.save

    def save(state: dict[str, Any], handle: Any) -> None:
        if state["step"] == 3 and "modules" in state:
            raise OSError(28, "No space left on device")
        real(state, handle)

    monkeypatch.setattr(torch, "save", save)
    recipe = load_recipe(RECIPE, tiny)
    with pytest.raises(OSError, match="No space left"):
        execute(recipe, tmp_path, device="cpu")
    monkeypatch.undo()
    path = latest_unfinished(recipe, tmp_path)
    assert path is not None
    assert "No space left" in RunFolder.open(path).info["why"]
    assert checkpoint.load(path / "checkpoints" / "last.pt")["step"] == 2
    run, stored = open_run(path, [])
    assert execute(stored, tmp_path, device="cpu", resume=run).info["state"] == "finished"


def test_two_processes_cannot_use_one_folder(finished: RunFolder, tiny: list[str]) -> None:
    run, recipe = open_run(finished.path, ["train.iterations=6"])
    with (
        RunFolder.open(finished.path).lock(),
        pytest.raises(InputError, match="Another process uses this run"),
    ):
        execute(recipe, finished.path.parents[2], device="cpu", resume=run)


def test_bad_data_is_told_and_recorded(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    recipe = load_recipe(RECIPE, [*tiny, f"data.root={tmp_path / 'data'}"])
    with pytest.raises(InputError):
        execute(recipe, tmp_path / "runs", device="cpu")
    assert Ledger(tmp_path / "runs").rows()[0]["state"] == "failed"


def test_accumulation_and_clipping_compute_the_same_step(tiny: list[str], tmp_path: Path) -> None:
    """FC-EF without dropout and in eval mode has no statistics of the batch, so two halves make the whole."""
    results = []
    for parts in (1, 2):
        recipe = load_recipe(RECIPE, [*tiny, "loss.dice=null", f"train.accumulate={parts}", "train.clip_norm=0.01",
                                      "optimizer.name=sgd", "optimizer.momentum=0", "optimizer.lr=1.0"])  # fmt: skip
        task, loop = prepare(recipe, torch.device("cpu"))
        task.modules["model"].eval()
        before = {n: p.detach().clone() for n, p in task.modules["model"].named_parameters()}
        task.update(next(loop._stream()), loop.updater)
        results.append({n: p.detach() - before[n] for n, p in task.modules["model"].named_parameters()})
    norm = torch.sqrt(sum((d**2).sum() for d in results[0].values()))  # type: ignore[arg-type]
    assert norm.item() == pytest.approx(0.01, rel=1e-4)
    for name, delta in results[0].items():
        torch.testing.assert_close(results[1][name], delta, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(precision: str, tiny: list[str], tmp_path: Path) -> None:
    """In fp16 the first steps may overflow and be skipped: a norm that is not finite is no divergence."""
    run = execute(
        load_recipe(RECIPE, [*tiny, f"train.precision={precision}", "train.clip_norm=1"]),
        tmp_path,
        device="cpu",
    )
    losses = [m["value"] for m in run.metrics() if m["name"] == "loss"]
    assert len(losses) == 4
    assert all(value is not None for value in losses)
    assert sum(m["name"] == "gradient_norm" for m in run.metrics()) == 4


def test_the_same_weights_under_three_protocols(finished: RunFolder) -> None:
    trained = load_trained(finished.path, [])
    rows = evaluate_trained(trained, ["whole", "tiles-32", "sliding-32-16"], "test")
    assert [row["protocol"]["name"] for row in rows] == ["whole", "tiles-32", "sliding-32-16"]
    assert [row["protocol"]["stride"] for row in rows] == [None, 32, 16]
    again = RunFolder.open(finished.path)
    assert set(again.info["protocols"]) >= {"test/whole", "test/tiles-32", "test/sliding-32-16"}
    assert len(again.samples("test", "tiles-32")) == 2
    first = {s["name"]: s["value"] for s in finished.info["scores"]}
    assert rows[0]["scores"] == first


def test_a_checkpoint_alone_is_enough_to_predict(
    finished: RunFolder, demo_data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "alone.pt"
    copy.write_bytes((finished.checkpoints / "last.pt").read_bytes())
    trained = load_trained(copy, [])
    pair = [demo_data / "test" / folder / "test_0000.png" for folder in ("A", "B")]
    written = list(trained.task.predict(trained.model, pair, tmp_path / "maps", "whole", trained.device))
    assert [p.name for p in written] == ["test_0000.png", "test_0000_probability.png"]
    with pytest.raises(InputError, match="do not fit"):
        load_trained(
            copy,
            ["model.base_width=8"]
            if "base_width" in trained.recipe.config["model"]
            else ["model=change/fc-ef"],
        )


def test_a_task_says_which_splits_it_cannot_read(tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        make_task(load_recipe(RECIPE, [*tiny, f"data.root={tmp_path}"])).check_data()


def test_it_is_visible_when_the_score_rose_and_the_rate_changed(tiny: list[str], tmp_path: Path) -> None:
    overrides = [
        *tiny,
        "train.iterations=6",
        "schedule={name: step, milestones: [0.5], gamma: 0.1}",
        "schedule.warmup=0",
    ]
    run = execute(load_recipe(RECIPE, overrides), tmp_path, device="cpu")
    progress = run.info["progress"]
    assert progress["rate_changes"] == [3]
    assert progress["rate_changed"] == 3
    rates = [m["value"] for m in run.metrics() if m["name"] == "lr"]
    assert rates == pytest.approx([2e-3] * 3 + [2e-4] * 3)
    scores = {m["step"]: m["value"] for m in run.metrics() if m["split"] == "val" and m["name"] == "f1"}
    rises = [
        s
        for s, v in scores.items()
        if v is not None and all(w is None or v > w for t, w in scores.items() if t < s)
    ]
    assert progress["last_rise"] == (rises[-1] if rises else None)
    assert progress["epoch"] == 3.0


def test_wall_time_is_recorded(finished: RunFolder) -> None:
    info = finished.info
    assert 0 < info["time"]["seconds_per_step"] < info["seconds"]
    assert info["time"]["seconds_per_epoch"] == pytest.approx(2 * info["time"]["seconds_per_step"])
    times = [m["time"] for m in finished.metrics()]
    assert times == sorted(times)
    assert info["time"]["peak_memory_mb"] > 0


def test_running_out_of_memory_is_a_result(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, batches: Any, updater: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("anban.tasks.contract.Task.update", fail)
    with pytest.raises(torch.OutOfMemoryError):
        execute(load_recipe(RECIPE, tiny), tmp_path, device="cpu")
    row = Ledger(tmp_path).rows()[0]
    assert row["state"] == "failed"
    assert "out of memory" in row["why"]
    info = RunFolder.open(next(tmp_path.glob("change/*/*/run.json"))).info
    assert info["model"]["parameters"] == 1350146


@pytest.mark.parametrize(("when", "times"), [("never", 0), ("epoch", 2), ("step", 4)])
def test_the_cache_is_cleared_when_told(
    when: str, times: int, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("anban.engine.memory.clear_cache", seen.append)
    execute(load_recipe(RECIPE, [*tiny, f"machine.clear_cache={when}"]), tmp_path, device="cpu")
    assert len(seen) == times


def test_a_collapse_is_warned_of(tiny: list[str], tmp_path: Path) -> None:
    """A rate of almost nothing and a threshold nothing reaches: every pixel is called unchanged."""
    run = execute(load_recipe(RECIPE, [*tiny, "eval.threshold=1.0"]), tmp_path, device="cpu")
    assert run.info["findings"][0]["what"].startswith("no pixel is predicted as change")
    assert "no pixel is predicted as change" in (run.path / "log.txt").read_text()
    every = execute(load_recipe(RECIPE, [*tiny, "eval.threshold=0.0"]), tmp_path, device="cpu")
    assert every.info["findings"][0]["what"].startswith("every pixel is predicted as change")


def test_every_network_can_be_fed_by_workers(tiny: list[str], tmp_path: Path) -> None:
    """TinyCD has more tensors than a worker could be sent one by one; nothing but data may travel."""
    overrides = [*tiny, "model=change/tinycd", "machine.workers=1", "train.iterations=2"]
    assert execute(load_recipe(RECIPE, overrides), tmp_path, device="cpu").info["state"] == "finished"


def test_training_without_validation_keeps_the_last_weights(tiny: list[str], tmp_path: Path) -> None:
    run = execute(load_recipe(RECIPE, [*tiny, "data.val=null"]), tmp_path, device="cpu")
    assert {line["checkpoint"] for line in run.info["scores"]} == {"last"}
    assert run.info["progress"]["best"] is None
    assert not any(m["split"] == "val" for m in run.metrics())


def test_a_network_whose_cost_cannot_be_measured_keeps_its_scores(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("only 64 pixels")

    monkeypatch.setattr("anban.engine.run.profile", fail)
    run = execute(load_recipe(RECIPE, [*tiny, "machine.profile=true"]), tmp_path, device="cpu")
    assert run.info["state"] == "finished"
    assert run.info["efficiency"] is None
    assert run.info["scores"]


def test_scores_on_other_data_do_not_join_the_record(
    finished: RunFolder, demo_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(demo_data, tmp_path / "data")
    for folder in ("A", "B", "label"):
        (tmp_path / "data" / "test" / folder / "test_0000.png").unlink()
    before = RunFolder.open(finished.path).info
    trained = load_trained(finished.path, [f"data.root={tmp_path / 'data'}"])
    rows = evaluate_trained(trained, ["whole+flip"], "test")
    assert rows[0]["images"] == 1
    assert RunFolder.open(finished.path).info["scores"] == before["scores"]


def test_last_and_best_are_told_apart(finished: RunFolder) -> None:
    trained = load_trained(finished.checkpoints / "last.pt", [])
    before = {line["checkpoint"] for line in finished.samples("test", "whole")}
    evaluate_trained(trained, ["whole"], "test")
    evaluate_trained(trained, ["whole"], "val")
    again = RunFolder.open(finished.path)
    assert {line["checkpoint"] for line in again.samples("test", "whole")} == before | {"last"}
    assert again.info["protocols"]["test/whole"]["split"] == "test"
    assert again.info["protocols"]["val/whole"]["split"] == "val"


def test_a_stop_during_the_final_evaluation_is_heard(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(RECIPE, tiny)
    stopped = Loop.evaluate

    def evaluate(self: Loop, split: str, *arguments: Any) -> Any:
        if split == "test":
            os.kill(os.getpid(), signal.SIGINT)
        return stopped(self, split, *arguments)

    monkeypatch.setattr(Loop, "evaluate", evaluate)
    with pytest.raises(Interrupted, match="evaluating"):
        execute(recipe, tmp_path, device="cpu")
    monkeypatch.undo()
    path = latest_unfinished(recipe, tmp_path)
    assert path is not None
    run, stored = open_run(path, [])
    resumed = execute(stored, tmp_path, device="cpu", resume=run)
    assert resumed.info["state"] == "finished"
    assert resumed.info["scores"]


def test_moved_data_are_no_obstacle_and_a_run_cannot_shrink(
    tiny: list[str], demo_data: Path, tmp_path: Path
) -> None:
    first = execute(load_recipe(RECIPE, tiny), tmp_path, device="cpu")
    shutil.copytree(demo_data, tmp_path / "data")
    run, recipe = open_run(first.path, [f"data.root={tmp_path / 'data'}", "train.iterations=5"])
    longer = execute(recipe, tmp_path, device="cpu", resume=run)
    assert longer.info["progress"]["step"] == 5
    assert longer.info["difference"]["train.iterations"] == 5
    run, recipe = open_run(first.path, ["train.iterations=3"])
    with pytest.raises(InputError, match="5 steps already"):
        execute(recipe, tmp_path, device="cpu", resume=run)


def test_a_run_says_which_scan_backend_it_used_and_why(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = FCSiamDiff.forward

    def scanning(self: FCSiamDiff, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        one = a.new_ones(1, 1, 1)
        selective_scan(one, one, one[0], one, one)
        return forward(self, a, b)

    monkeypatch.delenv("ANBAN_SCAN_BACKEND", raising=False)
    monkeypatch.setattr(FCSiamDiff, "forward", scanning)
    run = execute(load_recipe(RECIPE, tiny), tmp_path, device="cpu")
    assert list(run.info["scan"]) == ["cpu"]
    assert run.info["scan"]["cpu"].startswith("the fastest that runs on cpu; not triton")
