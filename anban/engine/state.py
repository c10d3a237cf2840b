"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from anban.engine.health import Health


@dataclass
class Progressed:
    """Where a run stands; all of it is kept in the checkpoint.

    Attributes:
        step: optimiser steps done.
        seconds: wall time of training so far, over all its parts.
        waited: part of it spent waiting for data.
        window: losses since the last logged line.
        best: step, score name and value of the best validation.
        last_rise: step at which the validation score last rose.
        rate_changed: step at which the learning rate last changed; `rate_changes` lists them for schedules that
            change it only now and then.
        skipped: steps that were left out because they were not finite.
        rolled_back: steps at which the run went back; their number decides which draws follow.
        health: what has gone wrong, and what its watch remembers.
    """

    step: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    window: list[float] = field(default_factory=list)
    best: dict[str, Any] | None = None
    last_rise: int | None = None
    rate_changed: int | None = None
    rate_changes: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    rolled_back: list[int] = field(default_factory=list)
    health: Health = field(default_factory=Health)

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Progressed:
        """From a checkpoint; one written before runs had a health has none."""
        known = {key: value for key, value in state.items() if key in cls.__dataclass_fields__}
        return cls(**known | {"health": Health.restored(state["health"]) if "health" in state else Health()})
