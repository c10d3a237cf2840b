"""Counterparts of official learning-rate schedules (their arguments, as published, in terms of ours) and trainings."""

from __future__ import annotations

from typing import Any

import numpy as np

from anban.engine.golden_training import TRAINING
from anban.engine.schedule import Cosine, Poly, Schedule
from anban.testing.golden import Adapter, Case, Outputs, UnsupportedError


def _warmed_up(
    warmup_iter: int = 500, warmup_ratio: float = 5e-4, warmup: str = "exp", last_epoch: int = -1
) -> dict[str, Any]:
    if last_epoch != -1:
        raise UnsupportedError("a schedule here begins at step 0")
    kind = "exponential" if warmup == "exp" else "linear"
    return {"warmup": warmup_iter, "warmup_start": warmup_ratio, "warmup_kind": kind}


def _poly(power: float, max_iter: int, **warmup: Any) -> tuple[Schedule, int]:
    return Poly(power=power, **_warmed_up(**warmup)), max_iter


def _cosine(max_iter: int, eta_ratio: float = 0, **warmup: Any) -> tuple[Schedule, int]:
    return Cosine(end=eta_ratio, angle="published", **_warmed_up(**warmup)), max_iter


def _old(
    lr0: float, warmup_steps: int, warmup_start_lr: float, max_iter: int, power: float, **of_sgd: float
) -> tuple[Schedule, int]:
    # Its warm-up includes the step at which ours is over: both have the full rate there.
    warmup = _warmed_up(warmup_iter=warmup_steps, warmup_ratio=warmup_start_lr / lr0)
    return Poly(power=power, **warmup), max_iter


def _rates(build: Any) -> Adapter:
    """Rates of the base group at the case's steps, and beside them those of the group that learns ten times as fast."""

    def adapter(case: Case) -> Outputs:
        arguments = case.arguments()
        base = arguments.pop("base_lr")
        arguments.pop("total_steps", None)
        schedule, total = build(**arguments)
        steps = case.stored["iteration"]
        rates = np.array(
            [[schedule.rate(peak, int(i), total, 1) for peak in (base, 10 * base)] for i in steps]
        )
        return {"iteration": steps, "lr": rates if case.stored["lr"].ndim == 2 else rates[:, 0]}

    return adapter


_REPOSITORY = "CoinCheung/BiSeNet"

ADAPTERS: dict[tuple[str, str], Adapter] = {
    (_REPOSITORY, "WarmupPolyLrScheduler"): _rates(_poly),
    (_REPOSITORY, "WarmupCosineLrScheduler"): _rates(_cosine),
    (_REPOSITORY, "Optimizer.get_lr"): _rates(_old),
    **TRAINING,
}
