from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from anban.engine.schedule import Constant, Cosine, Plateau, Poly, Schedule, Step


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


@pytest.mark.skipif("ANBAN_GOLDEN" not in os.environ, reason="ANBAN_GOLDEN is not set")
@pytest.mark.parametrize(
    "case", ["lr_warmuppoly_linear", "lr_warmuppoly_bisenetv1_city", "lr_warmuppoly_bisenetv2_city"]
)
def test_poly_equals_coincheung(case: str) -> None:
    folder = Path(os.environ["ANBAN_GOLDEN"]) / "segmentation"
    made = json.loads((folder / f"{case}.json").read_text())["constructor"]
    stored = np.load(folder / f"{case}.npz")
    options = made["kwargs"]
    kind = "exponential" if options["warmup"] == "exp" else "linear"
    schedule = Poly(power=options["power"], warmup=options["warmup_iter"], warmup_kind=kind,
                    warmup_start=options["warmup_ratio"])  # fmt: skip
    for step, (base, ten) in zip(stored["iteration"], stored["lr"], strict=True):
        found = schedule.rate(made["base_lr"], int(step), options["max_iter"], 1)
        assert found == pytest.approx(base, rel=1e-9)
        assert 10 * found == pytest.approx(ten, rel=1e-9)
