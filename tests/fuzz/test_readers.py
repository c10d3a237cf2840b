"""Damaged files: every reader loads them or refuses them with an InputError, in bounded time, and writes nothing beside them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loguru import logger
from mutate import Edit, edits
from readers import READERS

from anban.errors import InputError

PATIENCE = 30  # seconds after which a reader hangs; a case takes a hundredth of one
CASES, MANY = 30, 10_000

pytestmark = pytest.mark.filterwarnings("ignore")  # readers may warn of what they take all the same


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuzz(name, CASES, tmp_path, monkeypatch)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", READERS)
def test_ten_thousand_damaged_files_are_read_or_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuzz(name, MANY, tmp_path, monkeypatch)


def fuzz(name: str, cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many damaged files for one reader."""
    reader = READERS[name]
    folder, elsewhere = tmp_path / "files", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    files = {path: path.read_bytes() for path in reader.make(folder)}
    monkeypatch.chdir(elsewhere)
    logger.disable("anban")
    refusals: set[str] = set()

    @settings(max_examples=cases, deadline=None, database=None, derandomize=cases == CASES,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.sampled_from(sorted(files)), st.sampled_from(reader.damages), edits)
    def one(path: Path, damage: Callable[[bytes, list[Edit]], bytes], edits: list[Edit]) -> None:
        path.write_bytes(damage(files[path], edits))
        try:
            with in_time():
                reader.read(path)
        except InputError as error:
            refusals.add(str(error).strip())
        finally:
            path.write_bytes(files[path])

    try:
        one()
    finally:
        logger.enable("anban")
    assert "" not in refusals
    assert sorted(tmp_path.iterdir()) == [elsewhere, folder]
    assert list(elsewhere.iterdir()) == []


class Hung(BaseException):
    """No reader takes it for a fault of the file."""


@contextmanager
def in_time() -> Iterator[None]:
    """A reader that hangs is interrupted, where the system can."""

    def late(*_: object) -> None:
        raise Hung(f"not done after {PATIENCE} seconds")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
