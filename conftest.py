"""Shared fixtures. Golden cases and real samples are found through ANBAN_GOLDEN and ANBAN_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# One thread: the tests' sizes are too small for more, and results must not depend on the machine's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_report_header() -> list[str]:
    """Say what is left out for want of data."""
    lines = []
    for name, what in (
        ("ANBAN_GOLDEN", "golden cases beyond tests/golden"),
        ("ANBAN_DATA", "real sample data"),
    ):
        value = os.environ.get(name)
        lines.append(f"{name}: {value}" if value else f"{name} is not set: {what} left out")
    return lines


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny generated change data set: 4 + 2 + 2 scenes of 64 pixels. Read only."""
    from anban.tasks.change.demo import write_demo

    return write_demo(tmp_path_factory.mktemp("demo") / "data", train=4, val=2, test=2, size=64)


@pytest.fixture(scope="session")
def tiny(demo_data: Path) -> list[str]:
    """Overrides that shrink any change recipe to `demo_data` and four steps."""
    return [
        f"data.root={demo_data}",
        "data.tile=null",
        "augment.crop=null",
        "train.epochs=null",
        "train.iterations=4",
        "train.batch_size=2",
        "train.eval_every=2",
        "machine.log_every=1",
        "machine.checkpoint_every=1",
        "machine.workers=0",
        "machine.profile=false",
        "eval.protocols=[whole]",
        "eval.splits=[test]",
    ]
