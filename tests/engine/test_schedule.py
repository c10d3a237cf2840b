from __future__ import annotations

import math
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from anban.engine.golden import ADAPTERS
from anban.engine.golden_training import TRAINING
from anban.engine.schedule import Constant, Cosine, Plateau, Poly, Schedule, Step
from anban.testing import golden

COPIES = Path(__file__).parents[1] / "golden"
SCHEDULES = ADAPTERS.keys() - TRAINING.keys()
CASES = [
    case
    for case in golden.find_cases([Path(os.environ.get("ANBAN_GOLDEN", COPIES)) / "segmentation"])
    if case.official in SCHEDULES
]


def rates(schedule: Schedule, total: int, peak: float = 1.0, per_epoch: int = 1) -> list[float]:
    return [schedule.rate(peak, step, total, per_epoch) for step in range(total)]


def test_constant_and_linear_warmup() -> None:
    assert rates(Constant(), 3) == [1.0, 1.0, 1.0]
    warmed = rates(Constant(warmup=4, warmup_start=0.2), 6)
    assert warmed == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_exponential_warmup_multiplies_evenly() -> None:
    warmed = rates(Poly(warmup=4, warmup_kind="exponential", warmup_start=1e-4), 8)
    assert [b / a for a, b in pairwise(warmed[:4])] == pytest.approx([10, 10, 10])
    assert warmed[4] == 1.0


def test_poly_by_hand_and_floor() -> None:
    assert rates(Poly(power=2), 4) == pytest.approx([1, 0.5625, 0.25, 0.0625])
    assert rates(Poly(power=2, floor=0.2), 4) == pytest.approx([1, 0.5625, 0.25, 0.2])


def test_cosine_by_hand() -> None:
    assert rates(Cosine(), 4) == pytest.approx([1, 0.5 + 0.25 * 2**0.5, 0.5, 0.5 - 0.25 * 2**0.5])


def test_step_at_milestones() -> None:
    assert rates(Step(milestones=[0.5, 0.75], gamma=0.1), 4) == pytest.approx([1, 1, 0.1, 0.01])


def test_per_epoch_holds_the_rate() -> None:
    found = rates(Poly(power=1, per="epoch"), 6, per_epoch=2)
    assert found == pytest.approx([1, 1, 2 / 3, 2 / 3, 1 / 3, 1 / 3])


def test_plateau_cuts_after_patience_and_keeps_its_state() -> None:
    plateau = Plateau(gamma=0.5, patience=2, floor=0.2)
    seen = []
    for score in (0.5, 0.6, 0.6, 0.6, None, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1):
        plateau.observe(score, True)
        seen.append(plateau.rate(1.0, 5, 10, 1))
    assert seen == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2]
    again = Plateau(gamma=0.5, patience=2, floor=0.2)
    again.load_state_dict(plateau.state_dict())
    assert again == plateau


def test_plateau_can_minimise() -> None:
    plateau = Plateau(gamma=0.1, patience=1)
    for loss in (3.0, 2.0, 1.0, 0.5):
        plateau.observe(loss, False)
    assert plateau.cuts == 0


def test_cosine_ends_where_it_is_told() -> None:
    schedule = Cosine(end=0.1, warmup=2, warmup_start=0.5)
    assert schedule.rate(2.0, 10, 10, 1) == pytest.approx(0.2)
    assert schedule.rate(2.0, 6, 10, 1) == pytest.approx(2 * 0.55)


def test_published_angle_counts_the_warmup_and_rises_again() -> None:
    found = rates(Cosine(end=0.1, warmup=20, angle="published"), 100)
    assert found[20] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert np.argmin(found[20:]) == 60
    assert found[-1] > found[80] == pytest.approx(0.1)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_equal_to_the_official_one(case: golden.Case) -> None:
    result = golden.check(case, ADAPTERS)
    assert result.status == "ok", "\n".join([str(result.why), *golden.each_output(result)])


def test_every_official_schedule_is_among_the_cases() -> None:
    assert {case.official for case in CASES} == SCHEDULES
