"""Draws depend on what they are named by, and leave no trace outside."""

from __future__ import annotations

import random

import numpy as np
import torch

from anban.data.draws import derive, drawing_from, seed_everything


def draw() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def test_derive_tells_its_parts_apart() -> None:
    seeds = {
        derive(*parts) for parts in [(0, 1), (1, 0), (0, 1, 0), ("0", 1), (0, "1"), (1,), (10,), (0, 11)]
    }
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive(0, "augment", 3, 7) == derive(0, "augment", 3, 7)


def test_same_seed_same_draws_for_all_three_generators() -> None:
    with drawing_from(5):
        first = draw()
    with drawing_from(5):
        again = draw()
    with drawing_from(6):
        other = draw()
    assert first == again
    assert all(x != y for x, y in zip(first, other, strict=True))


def test_generators_outside_go_on_as_if_nothing_happened() -> None:
    seed_everything(1)
    expected = [draw(), draw()]
    seed_everything(1)
    got = [draw()]
    with drawing_from(derive(9)):
        draw()
    assert [*got, draw()] == expected


def test_generators_are_restored_after_an_error() -> None:
    seed_everything(1)
    expected = draw()
    seed_everything(1)
    try:
        with drawing_from(3):
            draw()
            raise KeyError
    except KeyError:
        pass
    assert draw() == expected
