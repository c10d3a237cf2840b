from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from anban.engine.settings import Train
from anban.engine.stream import StepSampler, order
from anban.errors import InputError


def test_an_epoch_sees_each_sample_once_and_epochs_differ() -> None:
    steps = list(StepSampler(7, 2, seed=3, first=0, last=6))
    first, second = [i for s in steps[:3] for _, i in s], [i for s in steps[3:] for _, i in s]
    assert len(set(first)) == 6
    assert first != second
    assert [e for s in steps for e, _ in s] == [0] * 6 + [1] * 6
    assert sorted(order(7, 3, 0)) == list(range(7))
    assert order(7, 3, 0) != order(7, 4, 0)


def test_any_step_can_be_asked_for_alone() -> None:
    whole = list(StepSampler(5, 2, seed=1, first=0, last=20))
    assert [next(iter(StepSampler(5, 2, 1, n, n + 1))) for n in range(20)] == whole


def test_processes_share_a_batch_without_overlap() -> None:
    whole = list(StepSampler(9, 4, 1, 0, 5))
    shares = [list(StepSampler(9, 4, 1, 0, 5, rank, 2)) for rank in range(2)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert sorted(first + second) == sorted(batch)


def test_a_small_split_gives_one_batch_per_epoch() -> None:
    assert [len(s) for s in StepSampler(3, 8, 0, 0, 2)] == [3, 3]


def test_parts_of_a_batch_are_equal() -> None:
    assert [len(s) for s in StepSampler(7, 8, 0, 0, 2, parts=3)] == [6, 6]
    assert [len(s) for s in StepSampler(2, 8, 0, 0, 2, parts=4)] == [2, 2]


def test_lengths() -> None:
    assert Train(iterations=7).total_steps(100) == 7
    assert Train(epochs=2.5, batch_size=8).total_steps(20) == 5
    for wrong in ({}, {"iterations": 1, "epochs": 1}, {"iterations": 1, "batch_size": 4, "accumulate": 3}):
        with pytest.raises(InputError, match="train"):
            Train(**wrong)


SIGNALLED = """
import os, signal
from anban.engine.stream import batches

class Numbers:
    def __getitem__(self, index):
        return index

if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    stream = batches(Numbers(), [[i] for i in range(40)], list, workers=1)
    first = next(stream)
    os.killpg(0, signal.SIGUSR2)
    print(sum(batch[0][0] for batch in (first, *stream)))
"""


def test_loaders_survive_the_signal_that_a_scheduler_sends_to_all(tmp_path: Path) -> None:
    script = tmp_path / "signalled.py"  # a file: the loading process imports it
    script.write_text(SIGNALLED)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, start_new_session=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "780\n"), done.stderr
