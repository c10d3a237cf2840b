"""What happens to a run when numbers, files, processes or disks fail under it, each fault injected into the real engine."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anban.engine import checkpoint, faults
from anban.engine.optim import adam, sgd
from anban.engine.run import execute, open_run
from anban.engine.settings import Train
from anban.engine.update import Updater
from anban.errors import InputError
from anban.recipe import load_recipe
from anban.record import Ledger, RunFolder
from anban.record import run as run_module
from anban.tasks.change.task import ChangeTask
from anban.tasks.contract import Diverged

RECIPE = "change/demo-fc-siam-diff"
FULL = OSError(28, "No space left on device")
Poison = Callable[[Callable[[ChangeTask, Any], bool]], None]


@pytest.fixture
def small(tiny: list[str]) -> list[str]:
    return [*tiny, "model.width=2", "train.iterations=8", "machine.train_samples=0"]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Call it with a function of task and batch that says whose loss is no number."""
    loss = ChangeTask.loss

    def poison(when: Callable[[ChangeTask, Any], bool]) -> None:
        def spoiled(self: ChangeTask, batch: Any) -> Any:
            value, parts = loss(self, batch)
            return (value * float("nan") if when(self, batch) else value), parts

        monkeypatch.setattr(ChangeTask, "loss", spoiled)

    return poison


def run_it(out: Path, *overrides: str) -> RunFolder:
    """The finished run, or the failed one."""
    try:
        return execute(load_recipe(RECIPE, overrides), out, device="cpu")
    except Exception as error:
        return RunFolder.open(error.run)  # type: ignore[attr-defined]


def resumed(run: RunFolder, *overrides: str) -> RunFolder:
    again, recipe = open_run(run.path, list(overrides))
    return execute(recipe, run.path.parents[2], device="cpu", resume=again)


def numbers(run: RunFolder) -> dict[tuple[Any, ...], Any]:
    return {(m["step"], m["split"], m["name"]): m["value"] for m in run.metrics()}


def weights(run: RunFolder) -> dict[str, Tensor]:
    found: dict[str, Tensor] = checkpoint.load(run.checkpoints / "last.pt")["modules"]["model"]
    return found


def same(a: RunFolder, b: RunFolder) -> bool:
    left, right = weights(a), weights(b)
    return numbers(a) == numbers(b) and all(torch.equal(left[k], right[k]) for k in left)


def finding(run: RunFolder, kind: str) -> dict[str, Any]:
    (found,) = [f for f in run.info["findings"] if f["kind"] == kind]
    return dict(found)


# Numbers that are not finite ------------------------------------------------------------------------------------------


class Pair:
    """Two networks whose second loss is what the test makes of it; the first has a batch normalisation."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.modules = {"model": nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "critic": nn.Linear(3, 1)}
        self.optimizers = {
            "model": adam(self.modules["model"], lr=0.1),
            "critic": sgd(self.modules["critic"], lr=0.1),
        }
        self.factor = 1.0

    def update(self, batches: Any, updater: Updater) -> dict[str, Tensor]:
        made = self.modules["model"](batches[0])
        updater.backward(made.square().mean(), "model")
        updater.step("model")
        judged = self.factor * self.modules["critic"](made.detach()).square().mean()
        updater.backward(judged, "critic")
        updater.step("critic")
        return {"loss": judged.detach()}

    def state(self) -> dict[str, Any]:
        held = {**self.modules, **{f"{n} optimizer": o for n, o in self.optimizers.items()}}
        return json.loads(
            json.dumps({n: x.state_dict() for n, x in held.items()}, default=lambda t: t.tolist())
        )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_skipped_step_leaves_no_trace(precision: Any) -> None:
    """The generator has stepped when the critic's loss turns out to be no number: its step is undone as well."""
    pair, batch = Pair(), torch.randn(4, 3)
    settings = Train(iterations=1, non_finite="skip", precision=precision, clip_norm=1.0)
    updater = Updater(pair.optimizers, settings, torch.device("cpu"))
    updater.apply(pair, [batch])  # type: ignore[arg-type]
    before = pair.state()
    pair.factor = float("inf")
    with pytest.raises(faults.NonFinite, match="loss is inf"):
        updater.apply(pair, [batch])  # type: ignore[arg-type]
    assert pair.state() == before
    with pytest.raises(faults.NonFinite, match="loss is nan"):
        updater.apply(pair, [batch * float("nan")])  # type: ignore[arg-type]
    assert pair.state() == before
    pair.factor = 1.0
    updater.apply(pair, [batch])  # type: ignore[arg-type]
    assert pair.state() != before


def test_a_gradient_that_is_no_number_is_skipped_too() -> None:
    pair = Pair()
    before = pair.state()
    updater = Updater(pair.optimizers, Train(iterations=1, non_finite="skip"), torch.device("cpu"))
    hook = pair.modules["model"][0].weight.register_hook(lambda g: g * float("nan"))  # type: ignore[index]
    with pytest.raises(faults.NonFinite, match="gradient is nan"):
        updater.apply(pair, [torch.randn(4, 3)])  # type: ignore[arg-type]
    hook.remove()
    assert pair.state() == before


def test_skipping_goes_on_and_is_written_down_and_resumes_exactly(
    small: list[str], tmp_path: Path, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(lambda task, batch: task.step + 1 in (3, 6))
    options = [*small, "train.non_finite=skip", "train.ema=0.5"]
    whole = run_it(tmp_path / "whole", *options)
    assert whole.info["state"] == "finished"
    assert sorted(step for step, split, name in numbers(whole) if name == "loss") == [1, 2, 4, 5, 7, 8]
    found = finding(whole, "non-finite")
    assert found["what"].startswith("2 steps left out (steps 3, 6): at the last of them the loss is nan")
    assert found["ended"] is not None
    assert whole.info["outcome"] != "non-finite"
    fault = json.loads((whole.path / "faults" / "step-6.json").read_text())
    assert (fault["step"], fault["what"], fault["non_finite"]) == (6, "the loss is nan", "skip")
    assert {sample["name"] for sample in fault["samples"]} <= {f"train_{n:04d}.png" for n in range(4)}
    assert fault["samples"][0]["name"] in found["what"]
    assert fault["checkpoint"] == 5
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        part = run_it(tmp_path / "part", *options)
    assert part.info["state"] == "failed"
    again = resumed(part)
    assert same(again, whole)
    assert again.info["findings"] == whole.info["findings"]


def test_a_run_that_only_skips_has_diverged(small: list[str], tmp_path: Path, poison: Poison) -> None:
    poison(lambda task, batch: task.step + 1 > 2)
    run = run_it(tmp_path, *small, "train.non_finite=skip", "train.iterations=20")
    assert (run.info["state"], run.info["outcome"]) == ("failed", "diverged")
    assert "10 steps in a row were left out; at step 12 the loss is nan" in run.info["why"]


def stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """The next run fails before that step, of whatever try."""
    loss = ChangeTask.loss

    def stopped(self: ChangeTask, batch: Any) -> Any:
        if self.step + 1 == step:
            raise RuntimeError("the power is gone")
        return loss(self, batch)

    patch.setattr(ChangeTask, "loss", stopped)


def test_going_back_takes_other_draws_and_resumes_exactly(
    small: list[str], tmp_path: Path, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pair of pictures that the first try draws for step 4 cannot be borne in this order."""
    options = [*small, "train.non_finite=roll-back", "train.ema=0.5", "data.cache=true"]
    seen: list[list[str]] = []

    def cannot(task: ChangeTask, batch: Any) -> bool:
        seen.append(list(batch["name"]))
        return task.step + 1 == 4 and len(seen) > 3 and batch["name"] == seen[3]

    poison(cannot)
    whole = run_it(tmp_path / "whole", *options)
    assert whole.info["state"] == "finished"
    found = finding(whole, "non-finite")
    assert found["what"].startswith(
        "gone back 1 time of 3 (step 4), the last time to step 2: the loss is nan at step 4"
    )
    assert found["step"] == 2
    assert [file.name for file in (whole.path / "faults").iterdir()] == ["step-4.json"]
    assert checkpoint.load(whole.checkpoints / "last.pt")["progress"]["rolled_back"] == [4]
    first = [m for m in whole.metrics(dedupe=False) if (m["step"], m["name"]) == (3, "loss")]
    assert first[0]["value"] != first[1]["value"], "the second try draws the same"
    for stop, earlier in ((3, []), (5, seen[:4])):  # killed before the fault; after it, in the second try
        again = tmp_path / f"stopped-{stop}"
        seen[:] = []
        with monkeypatch.context() as patch:
            stop_at(stop, patch)
            part = run_it(again, *options)
        assert part.info["state"] == "failed"
        assert seen[: len(earlier)] == earlier
        both = resumed(part)
        assert same(both, whole), stop
        assert both.info["findings"] == whole.info["findings"]


def test_going_back_is_given_up_after_three_times(small: list[str], tmp_path: Path, poison: Poison) -> None:
    poison(lambda task, batch: task.step + 1 == 4)
    run = run_it(
        tmp_path,
        *small,
        "train.non_finite=roll-back",
        "machine.log_every=100",
        "machine.checkpoint_every=100",
    )
    assert (run.info["state"], run.info["outcome"]) == ("failed", "diverged")
    files = sorted(file.stem for file in (run.path / "faults").iterdir())
    assert files == ["step-4", "step-4-try-2", "step-4-try-3", "step-4-try-4"]
    assert "gone back 3 times of 3" in finding(run, "non-finite")["what"]


def test_stopping_is_the_default_and_names_the_samples(
    small: list[str], tmp_path: Path, poison: Poison
) -> None:
    poison(lambda task, batch: task.step + 1 == 3)
    run = run_it(tmp_path, *small, "machine.checkpoint_every=2")
    assert run.info["state"] == "failed"
    fault = json.loads((run.path / "faults" / "step-3.json").read_text())
    names = [sample["name"] for sample in fault["samples"]]
    assert len(names) == 2
    assert (
        f"the loss is nan at step 3 (seed 0; samples {', '.join(names)}; faults/step-3.json)"
        in run.info["why"]
    )
    assert (fault["checkpoint"], fault["tries"]) == (2, 1)
    assert fault["rates"]["model"] == pytest.approx([4.016e-4] * 2)  # at step 3 of the warm-up
    with pytest.raises(Diverged, match="step 3"):
        resumed(run)


# Checkpoints that are damaged -----------------------------------------------------------------------------------------

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda b: b"",
    "one byte": lambda b: b[:1],
    "its head only": lambda b: b[:100],
    "cut in the middle": lambda b: b[: len(b) // 2],
    "cut near the end": lambda b: b[:-200],
    "one byte short": lambda b: b[:-1],
    "a bit of a tensor flipped": lambda b: (
        b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 1]) + b[len(b) // 2 + 1 :]
    ),
    "garbage": lambda b: os.urandom(len(b)),
    "zeros": lambda b: bytes(len(b)),
    "text": lambda b: b"no checkpoint",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told_and_an_earlier_one_taken(damage: str, tmp_path: Path) -> None:
    for name, step in (("step-2.pt", 2), ("step-10.pt", 10), ("last.pt", 11), ("best.pt", 11)):
        state: dict[str, Any] = {"step": step, "w": torch.ones(1000)}
        checkpoint.save(tmp_path / name, state if name == "best.pt" else {**state, "modules": {}})
    last = tmp_path / "last.pt"
    content = DAMAGES[damage](last.read_bytes())
    last.write_bytes(content)
    with pytest.raises(InputError, match=r"(?s)cannot be read as a checkpoint: \w.*last\.pt"):
        checkpoint.load(last)
    state = checkpoint.newest(tmp_path) or {}
    assert state["step"] == 10
    assert (tmp_path / "last.pt.damaged").read_bytes() == content
    assert not last.exists()
    for name in ("step-2.pt", "step-10.pt"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"(?s)No checkpoint of the run can be read.*step-10\.pt.*copy"):
        checkpoint.newest(tmp_path)
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 11


@pytest.mark.parametrize(
    "content", [{"format": "other/1", "modules": {}}, {"format": checkpoint.FORMAT, "step": 3}]
)
def test_a_checkpoint_that_is_none_or_cannot_be_trained_on(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(InputError, match=r"(not a checkpoint of a run|evaluated weights alone)"):
        checkpoint.newest(tmp_path)
    assert checkpoint.newest(tmp_path / "none") is None


def test_a_run_goes_on_exactly_from_the_checkpoint_before(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*small, "machine.keep_every=2", "machine.keep_last=2"]
    whole = run_it(tmp_path / "whole", *options)
    assert [file.name for file in checkpoint.kept(whole.checkpoints)] == ["step-8.pt", "step-6.pt"]
    with monkeypatch.context() as patch:
        stop_at(8, patch)
        part = run_it(tmp_path / "part", *options)
    assert {file.name for file in part.checkpoints.iterdir()} == {
        "best.pt",
        "last.pt",
        "step-4.pt",
        "step-6.pt",
    }
    file = part.checkpoints / "last.pt"
    file.write_bytes(file.read_bytes()[:-1])
    left = [part.checkpoints / ".best.pt.part", part.path / ".run.json.1-ab.tmp"]
    for each in left:
        each.write_bytes(b"half")
    again = resumed(part)
    assert same(again, whole)
    assert not any(each.exists() for each in left)
    log = (again.path / "log.txt").read_text()
    assert "going on from step-6.pt (step 6), the newest complete checkpoint" in log


# Files, processes, disks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_becomes_unreadable_is_named_and_the_run_goes_on_after_repair(
    workers: int, small: list[str], demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(demo_data, data)
    options = [
        *small,
        f"data.root={data}",
        "data.cache=false",
        "train.eval_every=8",
        f"machine.workers={workers}",
    ]
    whole = run_it(tmp_path / "whole", *options[:-1])
    pictures = sorted((data / "train" / "A").glob("*.png"))
    kept = [picture.read_bytes() for picture in pictures]
    loss = ChangeTask.loss

    def damaging(self: ChangeTask, batch: Any) -> Any:
        if self.step == 2:
            for picture, content in zip(pictures, kept, strict=True):
                damaged = picture.with_suffix(
                    ".part"
                )  # a worker may be reading: it meets the one or the other
                damaged.write_bytes(content[:100])
                damaged.replace(picture)
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(ChangeTask, "loss", damaging)
        run = run_it(tmp_path / "part", *options)
    assert run.info["state"] == "failed"
    assert re.fullmatch(r"the picture is truncated or damaged .*\n  where: +\S+/train/A/train_\d+\.png\n  expected: .*"
                        r"\n  do: +copy or download the file again", run.info["why"])  # fmt: skip
    assert "Copy or download the file again; anban run --resume" in finding(run, "error")["remedy"]
    for picture, content in zip(pictures, kept, strict=True):
        picture.write_bytes(content)
    assert same(resumed(run, "machine.workers=0"), whole)


def test_a_data_worker_that_is_killed_ends_the_run_with_advice(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_it(tmp_path / "whole", *small)
    loss = ChangeTask.loss

    def killing(self: ChangeTask, batch: Any) -> Any:
        if self.step == 2:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(ChangeTask, "loss", killing)
        run = run_it(tmp_path / "part", *small, "machine.workers=1", "data.val=null")
    assert run.info["state"] == "failed"
    assert "DataLoader worker" in run.info["why"]
    found = next(f for f in run.info["findings"] if f["kind"] in ("error", "out-of-memory"))
    assert "fewer machine.workers (now 1)" in found["remedy"]
    assert checkpoint.load(run.checkpoints / "last.pt")["step"] >= 2
    again = resumed(run, "machine.workers=0")
    assert {k: v for k, v in numbers(whole).items() if k[1] == "train"} == numbers(again)


@pytest.mark.parametrize(
    ("file", "writes"), [("metrics.jsonl", 6), ("run.json", 6), ("last.pt", 3), ("best.pt", 1)]
)
def test_a_full_disk_is_named_and_the_run_goes_on_once_there_is_space(
    file: str, writes: int, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at one write of that file, and has space again for the record of the failure."""
    whole = run_it(tmp_path / "whole", *small)
    left = [writes]

    def guarded(real: Callable[..., None]) -> Callable[..., None]:
        def write(path: Path, content: Any) -> None:
            left[0] -= path.name == file
            if path.name == file and left[0] == 0:
                raise OSError(FULL.errno, FULL.strerror, str(path))
            real(path, content)

        return write

    for module, name in ((run_module, "append"), (run_module, "write_atomically"), (checkpoint, "save")):
        monkeypatch.setattr(module, name, guarded(getattr(module, name)))
    run = run_it(tmp_path / "part", *small)
    assert run.info["state"] == "failed"
    found = finding(run, "error")
    assert found["what"] == "the disk is full"
    assert re.search(rf"No space left on device: '.*{file}'", run.info["why"])
    assert "Free some space" in found["remedy"]
    assert same(resumed(run), whole)


def test_a_disk_that_stays_full_leaves_a_lost_run(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the end can be written down: the run is still what its process makes of it, here this one."""
    update = RunFolder.update

    def full(self: RunFolder, **changes: Any) -> None:
        if (self.info.get("progress") or {}).get("step"):
            raise FULL
        update(self, **changes)

    monkeypatch.setattr(RunFolder, "update", full)
    run = run_it(tmp_path, *small)
    assert run.info["state"] == "running"
    (run.path / "run.json").write_text(json.dumps({**run.info, "process": "another boot:1"}))
    Ledger(tmp_path).rebuild()
    assert [row["state"] for row in Ledger(tmp_path).rows()] == ["lost"]


def test_a_real_short_write_names_the_file_and_the_reason() -> None:
    """/dev/full refuses every byte."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    refused: list[OSError] = []
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises((OSError, RuntimeError)):
        torch.save({"w": torch.ones(1000)}, checkpoint._Writer(file, refused))  # type: ignore[arg-type]
    assert "No space left on device" in str(refused[0])
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        run_module.append(Path("/dev/full"), b"line\n")


def test_a_clock_that_jumps_back_changes_no_duration_and_no_name(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    years = iter(range(2090, 1990, -1))
    monkeypatch.setattr(run_module, "now", lambda: f"{next(years)}-01-01T00:00:00.000+00:00")
    run, other = (run_it(tmp_path, *small) for _ in range(2))
    assert run.info["ended"] > other.info["ended"], "the clock did not jump"
    assert run.path != other.path
    assert 0 < run.info["time"]["seconds_per_step"] < run.info["seconds"] < 600
    times = [m["time"] for m in run.metrics()]
    assert times == sorted(times)
    assert len(Ledger(tmp_path).rows()) == 2
