"""What goes wrong in a run, each failure injected into the real engine: recipe in, outcome out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anban.cli.doctor import _run_health
from anban.cli.runs import print_list, print_run
from anban.engine import checkpoint
from anban.engine.health import Health, diagnosed
from anban.engine.run import execute, latest_unfinished, open_run
from anban.recipe import load_recipe
from anban.record import Ledger, RunFolder
from anban.tasks.change.models import fc
from anban.tasks.change.task import ChangeTask
from anban.tasks.contract import Diverged, Symptom, Task

RECIPE = "change/demo-fc-siam-diff"
EVERY_STEP = ["train.eval_every=1", "train.batch_size=2"]


class Pixelwise(nn.Module):
    """One weight per channel of the difference: steps that take no time. Untrained it calls some pixels changed."""

    instance: Pixelwise

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 1, 1)
        self.passes = 0
        type(self).instance = self

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.passes += self.training
        difference = (a - b).abs()
        mixed: Tensor = self.mix(difference - difference.mean())
        return self.broken(mixed)

    def broken(self, logit: Tensor) -> Tensor:
        """Where a test puts its fault."""
        return logit


Pixelwise.__module__ = fc.__name__  # recipes name nothing outside our package
Break = Callable[[Callable[[Pixelwise, Tensor], Tensor]], None]


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fc, "FCSiamDiff", Pixelwise)


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Call it with the fault: a function of the network and its logits."""
    return lambda fault: monkeypatch.setattr(Pixelwise, "broken", fault)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call it with the F1 that every evaluation of a split gives, one after the other, the last one for ever.

    What the task sees besides is given by `symptoms`, not by the predictions.
    """

    def script(symptoms: Sequence[Symptom] = (), **splits: list[float]) -> None:
        left: dict[str, Iterator[float]] = {name: iter(values) for name, values in splits.items()}

        def summary(self: ChangeTask, records: list[dict[str, Any]]) -> dict[str, float | None]:
            split = records[0]["split"]
            return {"f1": next(left[split], splits[split][-1])}

        monkeypatch.setattr(ChangeTask, "summary", summary)
        monkeypatch.setattr(ChangeTask, "health", lambda self, records: symptoms)

    return script


def run_it(out: Path, *overrides: str, resume: bool = False) -> RunFolder:
    """The finished run, or the failed one."""
    recipe, run = load_recipe(RECIPE, overrides), None
    if resume:
        path = latest_unfinished(recipe, out)
        assert path is not None
        run, recipe = open_run(path, [])
    try:
        return execute(recipe, out, device="cpu", resume=run)
    except Exception as error:
        return RunFolder.open(error.run)  # type: ignore[attr-defined]


def findings(run: RunFolder) -> dict[str, dict[str, Any]]:
    return {finding["kind"]: finding for finding in run.info["findings"]}


def told(run: RunFolder, kind: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The finding, after making sure that it is the outcome wherever a person looks for it."""
    found = findings(run)[kind]
    assert run.info["outcome"] == kind
    row = Ledger(run.path.parents[2]).rows()[0]
    assert [row[key] for key in ("outcome", "cause", "remedy")] == [kind, found["cause"], found["remedy"]]
    for text in (found["cause"], found["remedy"]):
        assert text[0].isupper()
        assert text.endswith(".")
    capsys.readouterr()
    print_list(run.path.parents[2])
    assert kind in capsys.readouterr().out.splitlines()[1].split()
    print_run(run.path.parents[2], run.id)
    shown = capsys.readouterr().out
    said = [finding for finding in _run_health(run.path)["findings"] if finding.get("kind") == kind]
    assert len(said) == 1
    assert said[0]["level"] == ("error" if run.info["state"] == "failed" else "warning")
    log = (run.path / "log.txt").read_text()
    for text in (found["cause"], found["remedy"]):
        assert text in shown
        assert text in json.dumps(said, ensure_ascii=False)
        assert text in log
    return found


# Healthy ------------------------------------------------------------------------------------------------------------


def test_a_sound_short_run_is_healthy(tiny: list[str], tmp_path: Path) -> None:
    run = run_it(tmp_path, *tiny)
    assert run.info["state"] == "finished"
    assert (run.info["outcome"], run.info["findings"]) == ("healthy", [])
    row = Ledger(tmp_path).rows()[0]
    assert (row["outcome"], row["cause"], row["remedy"]) == ("healthy", None, None)
    assert _run_health(run.path)["outcome"] == "healthy"
    sampled = {m["step"] for m in run.metrics() if (m["split"], m["name"]) == ("train-samples", "f1")}
    assert sampled == {2, 4}


def test_training_samples_need_not_be_scored(tiny: list[str], tmp_path: Path) -> None:
    run = run_it(tmp_path, *tiny, "machine.train_samples=0")
    assert run.info["outcome"] == "healthy"
    assert not any(m["split"] == "train-samples" for m in run.metrics())


# Collapse -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("logit", "words"), [(-10.0, "no pixel"), (10.0, "every pixel")])
def test_one_class_from_the_beginning(
    logit: float,
    words: str,
    tiny: list[str],
    tmp_path: Path,
    breaking: Break,
    capsys: pytest.CaptureFixture[str],
) -> None:
    breaking(lambda self, x: 0 * x + logit)
    found = told(run_it(tmp_path, *tiny), "collapse", capsys)
    assert words in found["what"]
    assert "has not learned yet" in found["cause"]
    assert (found["step"], found["ended"]) == (2, None)


def test_one_class_after_learning(
    tiny: list[str], tmp_path: Path, breaking: Break, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking(lambda self, x: x if self.passes < 3 else 0 * x - 10)
    found = told(run_it(tmp_path, *tiny, *EVERY_STEP), "collapse", capsys)
    assert "At step 2 it was not so: the network has collapsed since." in found["cause"]
    assert found["step"] == 3


def test_a_network_that_learns_late_is_healthy_in_the_end(
    tiny: list[str], tmp_path: Path, breaking: Break
) -> None:
    breaking(lambda self, x: x if self.passes > 2 else 0 * x - 10)
    run = run_it(tmp_path, *tiny, *EVERY_STEP)
    assert run.info["outcome"] == "healthy"
    assert (findings(run)["collapse"]["step"], findings(run)["collapse"]["ended"]) == (1, 3)
    said = _run_health(run.path)["findings"]
    assert [(f["level"], f["kind"]) for f in said] == [("info", "collapse")]
    assert "until step 3" in said[0]["what"]


def test_a_collapse_is_seen_without_validation(
    tiny: list[str], tmp_path: Path, breaking: Break, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking(lambda self, x: 0 * x - 10)
    found = told(run_it(tmp_path, *tiny, "data.val=null"), "collapse", capsys)
    assert found["what"].startswith("test (whole, last): no pixel")


# Divergence ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number(
    value: float, tiny: list[str], tmp_path: Path, breaking: Break, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log is written more rarely than validation comes: the next validation finds it all the same."""
    breaking(lambda self, x: x * value if self.training and self.passes == 3 else x)
    run = run_it(tmp_path, *tiny, "machine.log_every=100", "machine.checkpoint_every=null")
    found = told(run, "diverged", capsys)
    assert run.info["state"] == "failed"
    assert "the loss is nan at step 3" in found["what"]
    assert "optimizer.lr (now 0.002)" in found["remedy"]
    assert checkpoint.load(run.checkpoints / "last.pt")["step"] == 2


def test_a_gradient_that_is_no_number_never_reaches_a_checkpoint(
    tiny: list[str], tmp_path: Path, breaking: Break, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the last step before a validation no later loss can tell of it."""

    def poison(self: Pixelwise, logit: Tensor) -> Tensor:
        if self.training and self.passes == 4:
            logit.register_hook(lambda gradient: gradient * float("nan"))
        return logit

    breaking(poison)
    run = run_it(tmp_path, *tiny, "machine.checkpoint_every=1")
    assert "the weight mix.weight is not finite after step 4" in told(run, "diverged", capsys)["what"]
    state = checkpoint.load(run.checkpoints / "last.pt")
    assert state["step"] == 3
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_a_clipped_gradient_that_is_no_number_is_named(
    tiny: list[str], tmp_path: Path, breaking: Break, capsys: pytest.CaptureFixture[str]
) -> None:
    def poison(self: Pixelwise, logit: Tensor) -> Tensor:
        if self.training and self.passes == 1:
            logit.register_hook(lambda gradient: gradient * float("nan"))
        return logit

    breaking(poison)
    found = told(run_it(tmp_path, *tiny, "train.clip_norm=1"), "diverged", capsys)
    assert "the gradient_norm is nan at step 1" in found["what"]


def test_a_weight_that_becomes_no_number(
    tiny: list[str], tmp_path: Path, breaking: Break, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(self: Pixelwise, logit: Tensor) -> Tensor:
        if self.passes == 2:
            self.mix.bias.data.fill_(float("inf"))  # type: ignore[union-attr]
        return logit

    breaking(spoil)
    run = run_it(tmp_path, *tiny, "machine.checkpoint_every=100")
    found = told(run, "diverged", capsys)
    assert "mix.bias is not finite after step 2" in found["what"]


def test_a_prediction_that_is_no_number(
    tiny: list[str], tmp_path: Path, breaking: Break, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking(lambda self, x: x if self.training else x * float("nan"))
    found = told(run_it(tmp_path, *tiny), "diverged", capsys)
    assert "the network gives NaN for" in found["what"]


# Rate, gap, stagnation ----------------------------------------------------------------------------------------------

PLATEAU = [*EVERY_STEP, "schedule={name: plateau, patience: 1, gamma: 0.1}", "schedule.warmup=0"]


@pytest.mark.parametrize(("floor", "seen"), [("0", 7), ("2e-5", 5)])
def test_a_rate_cut_to_its_floor(
    floor: str,
    seen: int,
    tiny: list[str],
    tmp_path: Path,
    scored: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Patience 1: every second validation without a rise cuts the rate. Without a floor, three cuts are too many."""
    scored(train=[0.5], val=[0.5], test=[0.5])
    run = run_it(tmp_path, *tiny, *PLATEAU, f"schedule.floor={floor}", f"train.iterations={seen}")
    found = told(run, "rate-at-floor", capsys)
    assert found["step"] == seen
    assert "schedule.patience (now 1)" in found["remedy"]
    assert run.info["progress"]["rate_changes"] == list(range(3, seen, 2))


def test_a_rate_at_its_floor_is_no_harm_while_the_score_rises(
    tiny: list[str], tmp_path: Path, scored: Callable[..., None]
) -> None:
    scored(train=[0.5], val=[0.5, 0.5, 0.5, 0.6, 0.6], test=[0.5])
    run = run_it(tmp_path, *tiny, *PLATEAU, "schedule.floor=2e-4", "train.iterations=5")
    assert run.info["outcome"] == "healthy"
    assert (findings(run)["rate-at-floor"]["step"], findings(run)["rate-at-floor"]["ended"]) == (3, 4)


def test_training_scores_that_rise_while_others_fall(
    tiny: list[str], tmp_path: Path, scored: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    scored(train=[0.5, 0.6, 0.7, 0.8], val=[0.5, 0.45, 0.4, 0.35], test=[0.5])
    found = told(run_it(tmp_path, *tiny, *EVERY_STEP), "gap", capsys)
    assert found["step"] == 3
    assert found["what"] == "f1 is 80 on training samples and 35 in validation"


def test_a_lead_on_training_samples_is_no_gap_while_the_score_rises(
    tiny: list[str], tmp_path: Path, scored: Callable[..., None]
) -> None:
    """Where it is one already, a rise alone does not end it: the lead must shrink."""
    scored(train=[0.5, 0.6, 0.7, 0.75], val=[0.1, 0.2, 0.3, 0.4], test=[0.4])
    assert run_it(tmp_path, *tiny, *EVERY_STEP).info["outcome"] == "healthy"
    scored(train=[0.9], val=[0.4, 0.3, 0.5, 0.8], test=[0.8])
    run = run_it(tmp_path, *tiny, *EVERY_STEP)
    assert run.info["outcome"] == "healthy"
    assert (findings(run)["gap"]["step"], findings(run)["gap"]["ended"]) == (2, 4)


def test_training_unchanged_while_validation_falls(
    tiny: list[str], tmp_path: Path, scored: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluation mode spoils both splits, so only the training loss tells that the weights are no worse."""
    scored(train=[0.5, 0.2], val=[0.5, 0.2], test=[0.5])
    run = run_it(tmp_path, *tiny, *EVERY_STEP, "train.batch_size=4", "augment.flip=null", "augment.photometric=null",
                 "train.iterations=2", "optimizer.weight_decay=0")  # fmt: skip
    losses = [m["value"] for m in run.metrics() if m["name"] == "loss"]
    assert losses[1] <= losses[0]
    found = told(run, "gap", capsys)
    assert found["what"].startswith("f1 was 50 at step 1 and is 20 in validation")
    assert "evaluation mode" in found["cause"]


def test_the_final_evaluation_compares_the_splits_too(
    tiny: list[str], tmp_path: Path, scored: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    scored(train=[0.9], val=[0.9], test=[0.5])
    found = told(run_it(tmp_path, *tiny, "eval.splits=[test,train]"), "gap", capsys)
    assert found["what"] == "f1 is 90 on training samples and 50 on test (whole, best)"


def test_a_score_that_stagnates(
    tiny: list[str], tmp_path: Path, scored: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """It rises until step 12 of 20: five validations later that is not long yet, at step 18 it is a third of the run."""
    rising = [0.3 + 0.01 * step for step in range(12)]
    scored(train=[0.4], val=[*rising, 0.4], test=[0.4])
    run = run_it(tmp_path, *tiny, *EVERY_STEP, "train.iterations=20")
    found = told(run, "stagnation", capsys)
    assert found["step"] == 18
    assert found["what"].startswith("f1 last rose at step 12, to 41")
    assert run.info["progress"]["last_rise"] == 12


def test_a_short_pause_is_no_stagnation(tiny: list[str], tmp_path: Path, scored: Callable[..., None]) -> None:
    scored(train=[0.4], val=[0.4, 0.4, 0.4, 0.4, 0.4], test=[0.4])
    assert run_it(tmp_path, *tiny, *EVERY_STEP, "train.iterations=5").info["outcome"] == "healthy"
    scored(train=[0.4], val=[0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.5], test=[0.4])
    run = run_it(tmp_path, *tiny, *EVERY_STEP, "train.iterations=7")
    assert run.info["outcome"] == "healthy"
    assert (findings(run)["stagnation"]["step"], findings(run)["stagnation"]["ended"]) == (6, 7)


def test_the_gravest_is_the_outcome(tiny: list[str], tmp_path: Path, scored: Callable[..., None]) -> None:
    """Kinds that only a task knows come last."""
    seen = [
        Symptom("too-bright", "it is bright", "The sun shines.", "Wait."),
        Symptom("collapse", "all one", "C.", "R."),
    ]
    scored(symptoms=seen, train=[0.9], val=[0.1], test=[0.1])
    run = run_it(tmp_path, *tiny, *PLATEAU, "train.iterations=7")
    kinds = [finding["kind"] for finding in run.info["findings"]]
    assert kinds == ["collapse", "gap", "rate-at-floor", "stagnation", "too-bright"]
    assert run.info["outcome"] == "collapse"


# Memory -------------------------------------------------------------------------------------------------------------


def no_gpu_memory(self: Pixelwise, logit: Tensor) -> Tensor:
    if self.passes == 3:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of ..."
        )
    return logit


def no_memory(self: Pixelwise, logit: Tensor) -> Tensor:
    return logit if self.passes < 3 else torch.empty(2**48)  # more than there are addresses


@pytest.mark.parametrize(
    ("fault", "asked"),
    [(no_gpu_memory, "2.50 GiB was asked for"), (no_memory, "1048576.00 GiB was asked for")],
)
def test_a_run_out_of_memory_says_what_would_fit_and_goes_on(
    fault: Any,
    asked: str,
    tiny: list[str],
    tmp_path: Path,
    breaking: Break,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = run_it(tmp_path / "whole", *tiny)
    breaking(fault)
    run = run_it(tmp_path / "short", *tiny)
    found = told(run, "out-of-memory", capsys)
    assert run.info["state"] == "failed"
    assert found["step"] == 2
    assert asked in found["cause"]
    assert "GiB had been in use" in found["cause"]
    for knob in (
        "train.accumulate=2",
        "train.batch_size (now 2)",
        "train.precision=bf16",
        "depths",
        "eval_batch",
    ):
        assert knob in found["remedy"]
    breaking(lambda self, x: x)
    resumed = run_it(tmp_path / "short", *tiny, resume=True)
    assert resumed.path == run.path
    assert (resumed.info["state"], resumed.info["outcome"], resumed.info["findings"]) == (
        "finished",
        "healthy",
        [],
    )
    assert resumed.info["scores"] == whole.info["scores"]


@pytest.mark.parametrize(
    ("why", "kind"),
    [
        ("_ArrayMemoryError: Unable to allocate 7.11 PiB for an array with shape (9,)", "out-of-memory"),
        ("RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed. ", "out-of-memory"),
        ("AcceleratorError: CUDA error: out of memory", "out-of-memory"),
        ("failed-rank1: Diverged: the loss is nan at step 3 (seed 0)", "diverged"),
        ("RuntimeError: mat1 and mat2 shapes cannot be multiplied", "error"),
    ],
)
def test_what_ended_a_run_is_told_from_its_reason(why: str, kind: str) -> None:
    found = diagnosed(RuntimeError(), why, {"train": {"batch_size": 4, "accumulate": 4, "precision": "bf16"},
                                            "model": {"name": "x", "depths": [2, 2], "dims": 64}}, 1000.0)  # fmt: skip
    assert found.kind == kind
    if kind == "out-of-memory":
        assert "model.depths (now [2, 2]), model.dims (now 64)" in found.remedy
        assert "train.accumulate=" not in found.remedy
        assert "train.precision" not in found.remedy


def test_any_other_error_is_an_outcome_too(
    tiny: list[str], tmp_path: Path, breaking: Break, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Pixelwise, logit: Tensor) -> Tensor:
        raise ValueError("one channel too many")

    breaking(fail)
    assert "one channel too many" in told(run_it(tmp_path, *tiny), "error", capsys)["cause"]


# What is kept -------------------------------------------------------------------------------------------------------


def test_findings_go_on_exactly_where_a_run_stopped(
    tiny: list[str], tmp_path: Path, scored: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"train": [0.4], "val": [0.4], "test": [0.4]}
    longer = [*tiny, *EVERY_STEP, "train.iterations=9"]
    scored(**scores)
    whole = run_it(tmp_path / "whole", *longer)
    assert findings(whole)["stagnation"]["step"] == 6
    with monkeypatch.context() as patch:
        patch.setattr(Task, "update", stopping_at(4, Task.update))
        scored(**scores)
        stopped = run_it(tmp_path / "parts", *longer)
    assert (stopped.info["state"], stopped.info["outcome"]) == ("failed", "error")
    resumed = run_it(tmp_path / "parts", *longer, resume=True)
    assert resumed.info["findings"] == whole.info["findings"]
    health = [checkpoint.load(run.checkpoints / "last.pt")["progress"]["health"] for run in (whole, resumed)]
    assert health[0] == health[1]


def stopping_at(step: int, update: Callable[..., Any]) -> Callable[..., Any]:
    def stopped(self: Task, batches: Any, updater: Any) -> Any:
        if Pixelwise.instance.passes == step:
            raise OSError(28, "No space left on device")
        return update(self, batches, updater)

    return stopped


def test_a_checkpoint_without_a_health_goes_on(tiny: list[str], tmp_path: Path, breaking: Break) -> None:
    breaking(no_gpu_memory)
    run = run_it(tmp_path, *tiny)
    state = checkpoint.load(run.checkpoints / "last.pt")
    del state["progress"]["health"]
    state["progress"]["warnings"] = ["step 2, val: no pixel is predicted as change"]
    checkpoint.save(run.checkpoints / "last.pt", state)
    breaking(lambda self, x: x)
    assert run_it(tmp_path, *tiny, resume=True).info["outcome"] == "healthy"


def test_nothing_looked_at_is_no_outcome() -> None:
    assert Health().told() == {"outcome": None, "findings": []}


def test_a_divergence_in_prediction_is_a_runtime_error() -> None:
    """Whoever catches what PyTorch raises catches this as well."""
    assert issubclass(Diverged, RuntimeError)
