from __future__ import annotations

import sys

import pytest
import torch

from anban.engine.health import diagnosed
from anban.engine.memory import peak_mb, reset_peak, samples_that_fit

REFUSAL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 24.00 GiB of which 1.00 GiB is free. "
    "Including non-PyTorch memory, this process has 22.50 GiB memory in use. Of the allocated memory 21.00 GiB is "
    "allocated by PyTorch, and 512.00 MiB is reserved by PyTorch but unallocated."
)


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


def test_what_fits_follows_from_what_the_gpu_says() -> None:
    """3 of 23 GiB do not depend on the samples, so 8 of them need 2.5 GiB each, and 19.5 GiB have room for 7."""
    assert samples_that_fit(REFUSAL, 8, 3 * 2**30) == 7
    assert samples_that_fit(REFUSAL, 1, 3 * 2**30) == 0
    assert samples_that_fit("CUDA out of memory. Tried to allocate 2.00 GiB.", 8, 0) is None


@pytest.mark.parametrize(
    ("batch", "accumulate", "cure", "bound"),
    [
        (8, 1, "train.accumulate=2 (micro-batches of 4)", "at most 7 of 8 samples"),
        (7, 1, "train.accumulate=7 (micro-batches of 1)", "at most 6 of 7 samples"),
        (4, 4, "smaller pictures", "at most 0 of 1 samples"),
    ],
)
def test_the_advice_of_a_refusal_has_these_numbers(
    batch: int, accumulate: int, cure: str, bound: str
) -> None:
    """200 million parameters with Adam are 3 GiB of weights, gradients and moments."""
    config = {"train": {"batch_size": batch, "accumulate": accumulate}, "optimizer": {"name": "adamw"}}
    found = diagnosed(torch.OutOfMemoryError(REFUSAL), REFUSAL, config, 22000.0, 200_000_000)
    assert found.remedy.startswith(f"Try, in a new run, {cure}")
    assert bound in found.cause
    assert "2.00 GiB was asked for when up to 20.49 GiB had been in use" in found.cause
