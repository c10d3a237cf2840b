"""One fake study and one written report for all tests of the report; tests that change records make their own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the fake study stands beside the tests and is no package

from fake_study import DEMO, FakeArm, write_fake_study

from anban.report import write_report


@pytest.fixture(scope="session")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """study.json of six arms and three seeds with one failed run and one arm that predicts no change."""
    return write_fake_study(tmp_path_factory.mktemp("runs"), size=48, steps=200, pictured=2)


@pytest.fixture(scope="session")
def page(study_file: Path) -> Path:
    """report.html of that study; nobody writes to its folder afterwards."""
    return write_report(study_file, study_file.parent / "report")


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small study of one's own: `small(arms, seeds=2)` gives its study.json."""

    def write(arms: tuple[FakeArm, ...] = DEMO[:2], **options: int) -> Path:
        return write_fake_study(
            tmp_path / "runs",
            arms,
            **{"seeds": 2, "images": 6, "pictured": 1, "size": 32, "steps": 40, **options},
        )

    return write
