"""RSM-CD: sizes, and which orders its blocks scan."""

from __future__ import annotations

import pytest
import torch

from anban.errors import InputError
from anban.ssm.orders import OMNIDIRECTIONAL
from anban.ssm.vmamba import SS2D
from anban.tasks.change.models.rs_mamba import RSMamba
from anban.tasks.change.models.vss import Blocks


def test_sides_follow_the_number_of_levels() -> None:
    model = RSMamba(depths=(1, 1), dims=8).eval()
    with torch.no_grad():
        assert model(*torch.randn(2, 1, 3, 24, 40)).shape == (1, 1, 24, 40)
    with pytest.raises(InputError, match="multiples of 8"):
        model(*torch.randn(2, 1, 3, 24, 36))


def test_widths_need_not_double() -> None:
    model = RSMamba(depths=(1, 1, 1), dims=(8, 12, 10), in_channels=4).eval()
    with torch.no_grad():
        assert model(*torch.randn(2, 1, 4, 16, 32)).shape == (1, 1, 16, 32)


def test_eight_orders_take_the_place_of_those_of_the_forward_type() -> None:
    model = RSMamba(depths=(1, 1), dims=8, blocks=Blocks(forward_type="v31dnoz"))
    scans = [module for module in model.modules() if isinstance(module, SS2D)]
    assert len(scans) == 2
    for scan in scans:
        assert scan.kind.orders == OMNIDIRECTIONAL
        assert scan.kind.gate == "none"
