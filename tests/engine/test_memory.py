from __future__ import annotations

import sys

import pytest
import torch

from anban.engine.memory import peak_mb, reset_peak


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a process forget its peak")
def test_a_peak_belongs_to_its_own_run() -> None:
    cpu = torch.device("cpu")
    reset_peak(cpu)
    before = peak_mb(cpu)
    block = torch.ones(50_000_000)
    assert peak_mb(cpu) > before + 150
    del block
    reset_peak(cpu)
    assert peak_mb(cpu) < before + 100
