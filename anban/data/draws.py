"""Every random draw is a pure function of named numbers, never of what was drawn before.

A draw that depends only on (seed, epoch, index) is the same in the main process and in any worker, before and
after a resume, so nothing has to be stored or replayed to continue a run exactly.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(*parts: int | str) -> int:
    """A seed in [0, 2**63) from any sequence of numbers and words; other sequences give unrelated seeds."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(seed: int) -> None:
    """Set torch's (all devices), numpy's and Python's global generators to a state that depends on `seed` only."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Inside, the CPU generators of torch, numpy and Python start at `seed`; outside they are left as they were.

    Library transforms draw from the global generators; this makes each of their draws ours to repeat.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
