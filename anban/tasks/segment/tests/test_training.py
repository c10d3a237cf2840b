"""Training as a recipe says it, beside the official training script."""

from __future__ import annotations

from pathlib import Path

import torch

from anban.engine.golden_training import training_losses
from anban.testing import golden

COPIES = Path(__file__).parents[4] / "tests" / "golden" / "segmentation"


def test_ten_steps_of_bisenet_city_cost_what_they_cost_in_the_release() -> None:
    # Rates, groups, momentum and decay all show: what differs by a millionth in one step differs by more in the next.
    (case,) = golden.find_cases([COPIES / "bisenetv1_tensteps_64x96.json"])
    released = torch.from_numpy(case.stored["loss"])
    torch.testing.assert_close(training_losses(case), released, rtol=1e-8, atol=0)
