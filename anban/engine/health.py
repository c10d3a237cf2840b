"""The health of a run: what goes wrong is found at the next validation and kept with a cause and a remedy.

Nothing here stops a run. A loss that is no number and memory that is not enough end it by themselves; everything else is
written down, and training goes on. What no longer holds is marked as ended, so a network that predicts one class for
a while and then learns is healthy in the end.

The limits are constants, not keys of a recipe: an outcome must mean the same for every run of a ledger. Only what is
too large a gap depends on the score, so it is the task's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from loguru import logger

from anban.engine import memory
from anban.engine.evaluate import Evaluation
from anban.engine.schedule import Plateau, Schedule
from anban.errors import InputError
from anban.tasks.contract import Diverged, Symptom, Task

#: What can be wrong, the gravest first; the first three end a run. Kinds that only a task knows come last.
KINDS = ("diverged", "out-of-memory", "error", "non-finite", "collapse", "gap", "rate-at-floor", "stagnation")
HEALTHY = "healthy"

#: A score stagnates when it has not risen in so many validations, and not in so large a part of the run so far.
STAGNANT_VALIDATIONS = 5
STAGNANT_SHARE = 1 / 3

#: A rate below this share of its peak moves nothing, whatever floor the schedule has.
NEGLIGIBLE_RATE = 0.002

_OUT_OF_MEMORY = re.compile(
    r"out of memory|MemoryError|can(?:'|no)t allocate memory|not enough memory|ALLOC_FAILED"
    r"|insufficient shared memory|killed by signal: Killed",
    re.IGNORECASE,
)
_WORKER = re.compile(r"DataLoader worker .*exited unexpectedly")
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")


@dataclass(frozen=True)
class Finding:
    """A symptom in the course of a run.

    Attributes:
        kind, what, cause, remedy: see `Symptom`.
        step: at which it was first seen.
        ended: the step of the first validation at which it was gone; None while it holds.
    """

    kind: str
    what: str
    cause: str
    remedy: str
    step: int
    ended: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}. Cause: {self.cause} Remedy: {self.remedy}"


@dataclass
class Health:
    """What is known of a run's health, with what must be remembered between validations; kept in the checkpoint.

    Attributes:
        findings: one per kind, the latest of it.
        looked: whether there has been a validation or an evaluation at all.
        sound: step of the last validation without a collapse.
        flat: validations since the score last rose.
        loss, steps: sum of the training losses since the last validation, and their number.
        best_loss: their mean before the best validation.
    """

    findings: list[Finding] = field(default_factory=list)
    looked: bool = False
    sound: int | None = None
    flat: int = 0
    loss: float = 0.0
    steps: int = 0
    best_loss: float | None = None

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Health:
        """From what `asdict` made of one."""
        return cls(**{**state, "findings": [Finding(**finding) for finding in state["findings"]]})

    def hear(self, loss: float) -> None:
        """Of the training loss of a step."""
        self.loss, self.steps = self.loss + loss, self.steps + 1

    def validated(
        self,
        step: int,
        task: Task,
        *,
        symptoms: Sequence[Symptom],
        score: float | None,
        trained: float | None,
        best: Mapping[str, Any] | None,
        schedule: Schedule,
        peaks: Iterable[float],
    ) -> None:
        """Look at a validation.

        Args:
            symptoms: what the task sees in the samples' records.
            score: on the validation split, of the name `task.select`.
            trained: the same on a few training samples; None where these were not scored.
            best: `step` and `value` of the best validation so far, this one included.
            schedule: after it has heard of the score.
            peaks: the rate of every parameter group that the schedule scales.
        """
        self.looked = True
        loss = self.loss / self.steps if self.steps else None
        rose = best is not None and best["step"] == step
        if rose:
            self.flat, self.best_loss = 0, loss
        else:
            self.flat += 1
        # As long as the score rises, that on training samples may well be ahead.
        ahead = [] if rose and not self._holds("gap") else _gap(task, trained, score, "in validation")
        fits = loss is not None and self.best_loss is not None and loss <= self.best_loss
        now = [
            *_with_history(symptoms, self.sound),
            *(ahead or _fall(task, best, score, fits)),
            *_rate_at_floor(task, schedule, max(peaks, default=0.0)),
            *_stagnation(task, step, best, self.flat),
        ]
        if all(symptom.kind != "collapse" for symptom in now):
            self.sound = step
        self.loss, self.steps = 0.0, 0
        gone = {f.kind for f in self.findings if f.ended is None} - {symptom.kind for symptom in now}
        if gone:
            logger.info(f"step {step}: no longer {', '.join(sorted(gone))}")
        self.findings = [replace(f, ended=step) if f.kind in gone else f for f in self.findings]
        for symptom in now:
            self.add(symptom, step)

    def evaluated(
        self, step: int, task: Task, results: Mapping[tuple[str, str], Evaluation], which: str
    ) -> None:
        """Look at the final evaluation: it adds findings and ends none, for it may have used the best weights.

        Args:
            results: of every (split, protocol); with the split `train` among them the others are compared with it.
            which: the checkpoint that was evaluated.
        """
        self.looked = True
        for (split, protocol), result in results.items():
            place = f"{split} ({protocol}, {which})"
            found = [s._replace(what=f"{place}: {s.what}") for s in result.symptoms]
            if split != "train" and ("train", protocol) in results:
                trained = results["train", protocol].scores.get(task.select)
                found += _gap(task, trained, result.scores.get(task.select), f"on {place}")
            for symptom in found:
                if not self._holds(symptom.kind):
                    self.add(symptom, step)

    def add(self, symptom: Symptom, step: int) -> None:
        """Write a symptom down: a new finding, or the new words of one that still holds."""
        known = next((f for f in self.findings if f.kind == symptom.kind), None)
        if known is None or known.ended is not None:
            finding = Finding(*symptom, step=step)
            level = "DEBUG" if finding.kind == "error" else "WARNING"  # whoever catches an error tells it
            logger.log(level, f"step {step}: {finding}")
        else:
            finding = Finding(*symptom, step=known.step)
        self.findings = [f for f in self.findings if f is not known] + [finding]

    def _holds(self, kind: str) -> bool:
        return any(finding.kind == kind and finding.ended is None for finding in self.findings)

    def told(self) -> dict[str, Any]:
        """What run.json keeps: `outcome` and `findings`.

        The outcome is the kind of the gravest finding that holds, else `healthy`; None before anything was looked at.
        """
        ordered = sorted(
            self.findings, key=lambda finding: (finding.ended is not None, _gravity(finding.kind))
        )
        holds = [finding.kind for finding in ordered if finding.ended is None]
        sound = HEALTHY if self.looked else None
        return {"outcome": holds[0] if holds else sound, "findings": [asdict(f) for f in ordered]}


def _gravity(kind: str) -> int:
    return KINDS.index(kind) if kind in KINDS else len(KINDS)


# At a validation ----------------------------------------------------------------------------------------------------


def _with_history(symptoms: Sequence[Symptom], sound: int | None) -> list[Symptom]:
    """A network that has learned nothing yet is told from one that has lost what it had."""
    before = (
        "It has been so since the first validation: the network has not learned yet, or never will."
        if sound is None
        else f"At step {sound} it was not so: the network has collapsed since."
    )
    return [s._replace(cause=f"{before} {s.cause}") if s.kind == "collapse" else s for s in symptoms]


def _gap(task: Task, trained: float | None, score: float | None, where: str) -> list[Symptom]:
    if trained is None or score is None or _better(task, trained, score) <= task.gap:
        return []
    return [Symptom("gap", f"{task.select} is {_shown(task, trained)} on training samples and {_shown(task, score)} {where}",
                    "The network has fitted the training samples and does not carry over: too few or too uniform "
                    "samples, too many steps, or splits of another kind.",
                    "Augment more, add data or optimizer.weight_decay, or train fewer steps; look at both splits with "
                    "anban doctor DATA.")]  # fmt: skip


def _fall(task: Task, best: Mapping[str, Any] | None, score: float | None, fits: bool) -> list[Symptom]:
    """The score falls although the training loss does not rise: the gap, where training samples are scored no better."""
    if best is None or score is None or not fits or _better(task, best["value"], score) <= task.gap:
        return []
    return [Symptom("gap", f"{task.select} was {_shown(task, best['value'])} at step {best['step']} and is "
                    f"{_shown(task, score)} in validation, while the training loss did not rise",
                    "The same weights do worse in evaluation mode (statistics of batch normalisation that drift, "
                    "dropout, other preparation of the pictures), or they fit the training samples alone.",
                    "Enlarge train.batch_size or leave batch normalisation out, lower optimizer.lr, compare the "
                    "preparation of both splits; best.pt keeps the better weights.")]  # fmt: skip


def _stagnation(task: Task, step: int, best: Mapping[str, Any] | None, flat: int) -> list[Symptom]:
    risen = best["step"] if best is not None else 0
    if flat < STAGNANT_VALIDATIONS or step - risen < STAGNANT_SHARE * step:
        return []
    level = f", to {_shown(task, best['value'])}" if best is not None else ""
    return [Symptom("stagnation", f"{task.select} last rose at step {risen}{level}: {flat} validations ago, at step {step}",
                    "What this rate of learning, network and loss can reach has been reached, or the rate is too high "
                    "to settle or too low to move.",
                    "End runs like this one earlier, or change optimizer.lr or the schedule (another name, a cut where "
                    "it stops rising); best.pt keeps the best weights.")]  # fmt: skip


def _rate_at_floor(task: Task, schedule: Schedule, peak: float) -> list[Symptom]:
    if not isinstance(schedule, Plateau) or not schedule.stuck:
        return []
    rate = max(min(schedule.floor, peak), peak * schedule.gamma**schedule.cuts)
    if rate > 1.001 * max(schedule.floor, NEGLIGIBLE_RATE * peak):  # 0.1 ** 3 is a little more than 0.001
        return []
    return [Symptom("rate-at-floor", f"the learning rate was cut {schedule.cuts} times, from {peak:.3g} to {rate:.3g}, and "
                    f"{task.select} has not risen since",
                    f"With schedule.patience {schedule.patience} the rate is cut faster than the score can follow; at "
                    "such a rate the weights hardly move.",
                    f"Raise schedule.patience (now {schedule.patience}), schedule.cooldown (now {schedule.cooldown}) or "
                    f"schedule.gamma (now {schedule.gamma:g}), or set schedule.floor (now {schedule.floor:g}) to a rate "
                    "that still moves them.")]  # fmt: skip


def _better(task: Task, one: float, other: float) -> float:
    return one - other if task.higher_is_better else other - one


def _shown(task: Task, value: float) -> str:
    return f"{task.scale * value:.4g}"


# At an early end ----------------------------------------------------------------------------------------------------


def diagnosed(
    error: BaseException, why: str, config: Mapping[str, Any], peak_mb: float, parameters: int = 0
) -> Symptom:
    """What ended a run.

    Args:
        error: of this process.
        why: what is recorded as the reason; with several processes it may be another one's.
        config: the recipe's.
        peak_mb: the most memory that was in use, in MB.
        parameters: of the network that is evaluated; 0 where it was not built.
    """
    if isinstance(error, Diverged) or f"{Diverged.__name__}: " in why:
        rate = (config.get("optimizer") or {}).get("lr")
        return Symptom("diverged", why.removeprefix(f"{Diverged.__name__}: "),
                       "The steps were too large for the weights, or the loss divides by zero or takes the logarithm "
                       "of nothing.",
                       f"Lower optimizer.lr{f' (now {rate:g})' if rate else ''}, lengthen schedule.warmup or set "
                       "train.clip_norm, in a new run: --resume repeats the steps after the last checkpoint exactly.")  # fmt: skip
    if _OUT_OF_MEMORY.search(why):
        return _out_of_memory(why, config, peak_mb, parameters)
    first = f"{(why or type(error).__name__).splitlines()[0].rstrip('.')}."
    resumes = "anban run --resume goes on from the last checkpoint."
    if _WORKER.search(why):
        return Symptom("error", "a data-loading process ended", f"{first} Most often the system has ended it because main "
                       "memory ran out (its log says so, see dmesg).",
                       f"Set fewer machine.workers (now {(config.get('machine') or {}).get('workers')}); {resumes}")  # fmt: skip
    if _DISK_FULL.search(why):
        return Symptom("error", "the disk is full", first,
                       f"Free some space (machine.keep_last bounds the checkpoints that are kept); {resumes}")  # fmt: skip
    do = (isinstance(error, InputError) and error.do) or "the stack is in log.txt"
    return Symptom("error", "the run ended with an error", first, f"{do[0].upper()}{do[1:]}; {resumes}")


def _out_of_memory(why: str, config: Mapping[str, Any], peak_mb: float, parameters: int) -> Symptom:
    train, machine, model = (config.get(name) or {} for name in ("train", "machine", "model"))
    asked = memory.asked_for(why)
    size, accumulate = train.get("batch_size", 1), train.get("accumulate", 1)
    kept = (
        3 if (config.get("optimizer") or {}).get("name") == "sgd" else 4
    )  # weight, gradient, moments; 4 bytes each
    fits = memory.samples_that_fit(why, size // accumulate, 4.0 * kept * parameters)
    parts = next(
        (n for n in range(accumulate + 1, size + 1) if size % n == 0 and size // n <= (fits or size)), None
    )
    cures = [
        f"train.accumulate={parts} (micro-batches of {size // parts})"
        if parts and fits != 0
        else "smaller pictures",
        f"a smaller train.batch_size (now {size})",
        "train.precision=bf16" if train.get("precision") == "fp32" else None,
        _smaller_network(model),
        f"a smaller machine.eval_batch (now {machine.get('eval_batch')}) if it was in an evaluation",
        f"fewer machine.workers (now {machine['workers']})" if machine.get("workers") else None,
    ]
    bound = (
        ""
        if fits is None
        else f" By these figures at most {fits} of {size // accumulate} samples fit at once."
    )
    return Symptom("out-of-memory", f"out of memory: {why.splitlines()[0]}",
                   f"A step of {size} samples in {accumulate} part{'' if accumulate == 1 else 's'}, or an evaluation, "
                   f"needs more memory than there is: {f'{asked / 2**30:.2f} GiB' if asked else 'more'} was asked for when "
                   f"up to {peak_mb * 1e6 / 2**30:.2f} GiB had been in use.{bound}",
                   f"Try, in a new run, {', '.join(cure for cure in cures if cure)}; once more memory is free, anban run "
                   "--resume goes on from the last checkpoint.")  # fmt: skip


def _smaller_network(model: Mapping[str, Any]) -> str:
    keys = [key for key in model if re.search("depth|dim|width|channels", key)]
    told = ", ".join(f"model.{key} (now {model[key]})" for key in keys)
    return f"a smaller network: {told}" if told else "a smaller network (its depths and dims)"
