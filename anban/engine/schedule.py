"""Learning-rate schedules: the rate of every step, a pure function of the step wherever that is possible.

All of them share one warm-up and one floor. Only `plateau` looks at scores, so only it has a state to keep.
Their fields are the schema of the recipe section `schedule`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from anban.recipe.schema import Count, NonNegative, Positive, Share


@dataclass(kw_only=True)
class Schedule:
    """Factor of the peak rate at each step.

    Args:
        warmup: steps of warm-up before the schedule proper, which then runs over the remaining steps.
        warmup_kind: `linear` raises the factor evenly from `warmup_start` to 1, `exponential` multiplies it by the
            same number each step (CoinCheung/BiSeNet's two warm-ups).
        warmup_start: factor at step 0 of the warm-up.
        floor: lowest absolute rate that the schedule proper may reach.
        per: change the rate every `iteration`, or hold it over each `epoch` at the value of the epoch's first step.
    """

    warmup: Annotated[int, Ge(0)] = 0
    warmup_kind: Literal["linear", "exponential"] = "linear"
    warmup_start: Positive = 1e-3
    floor: NonNegative = 0.0
    per: Literal["iteration", "epoch"] = "iteration"

    #: Whether the rate changes at a few steps that are worth listing one by one.
    discrete: ClassVar[bool] = False

    def rate(self, peak: float, step: int, total: int, steps_per_epoch: int) -> float:
        """The learning rate of optimiser step `step` (from 0) of `total`, for a group with this peak rate."""
        if self.per == "epoch":
            step = step // steps_per_epoch * steps_per_epoch
        if step < self.warmup:
            share, start = step / self.warmup, self.warmup_start
            return peak * (
                start + (1 - start) * share if self.warmup_kind == "linear" else start ** (1 - share)
            )
        return max(min(self.floor, peak), peak * self.factor(self.progress(step, total)))

    def progress(self, step: int, total: int) -> float:
        """How far a step after the warm-up is, from 0 to 1."""
        return min(1.0, (step - self.warmup) / max(1, total - self.warmup))

    def factor(self, progress: float) -> float:
        """Factor after the warm-up; `progress` runs from 0 to 1."""
        raise AssertionError("a schedule says how its factor runs")

    def observe(self, score: float | None, higher_is_better: bool) -> None:
        """Hear of a validation score (None: undefined, which is no improvement)."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


@dataclass(kw_only=True)
class Constant(Schedule):
    """The peak rate, all the way."""

    def factor(self, progress: float) -> float:
        return 1.0


@dataclass(kw_only=True)
class Poly(Schedule):
    """(1 - progress) ** power, as DeepLab and BiSeNet use it."""

    power: Positive = 0.9

    def factor(self, progress: float) -> float:
        return float((1 - progress) ** self.power)


@dataclass(kw_only=True)
class Cosine(Schedule):
    """Half a cosine from 1 to `end`.

    Args:
        end: factor at the end.
        angle: "published" divides all steps, those of the warm-up included, by the number of steps after it, as
            CoinCheung/BiSeNet's WarmupCosineLrScheduler does: the rate falls at once at the end of the warm-up, is
            lowest before the end, and rises again.
    """

    end: Share = 0.0
    angle: Literal["from warm-up", "published"] = "from warm-up"

    def progress(self, step: int, total: int) -> float:
        if self.angle == "published":
            return step / max(1, total - self.warmup)
        return super().progress(step, total)

    def factor(self, progress: float) -> float:
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(kw_only=True)
class Step(Schedule):
    """Times `gamma` at each milestone, given as shares of the run, such as [0.6, 0.9]."""

    milestones: list[Share]
    gamma: Positive = 0.1
    discrete: ClassVar[bool] = True

    def factor(self, progress: float) -> float:
        return float(self.gamma ** sum(progress >= milestone for milestone in self.milestones))


@dataclass(kw_only=True)
class Plateau(Schedule):
    """Times `gamma` when the validation score has not improved for more than `patience` validations.

    Args:
        patience: validations without improvement that are borne.
        threshold: smallest absolute improvement that counts.
        cooldown: validations after a cut during which no failure is counted.

    `stuck` says that there has been no improvement since the last cut.
    """

    gamma: Positive = 0.1
    patience: Count = 10
    threshold: NonNegative = 0.0
    cooldown: Annotated[int, Ge(0)] = 0
    best: float | None = field(default=None, init=False)
    failures: int = field(default=0, init=False)
    cuts: int = field(default=0, init=False)
    resting: int = field(default=0, init=False)
    stuck: bool = field(default=False, init=False)
    discrete: ClassVar[bool] = True

    def factor(self, progress: float) -> float:
        return float(self.gamma**self.cuts)

    def observe(self, score: float | None, higher_is_better: bool) -> None:
        signed = None if score is None else (score if higher_is_better else -score)
        if signed is not None and (self.best is None or signed > self.best + self.threshold):
            self.best, self.failures, self.stuck = signed, 0, False
        elif self.resting:
            self.resting -= 1
        else:
            self.failures += 1
        if self.failures > self.patience:
            self.cuts, self.failures, self.resting, self.stuck = self.cuts + 1, 0, self.cooldown, True

    def state_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("best", "failures", "cuts", "resting", "stuck")}
