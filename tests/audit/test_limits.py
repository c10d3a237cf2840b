"""The thresholds are explained, and docs/audit.md says what the code does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from anban.audit.finding import PROBLEMS
from anban.audit.limits import DEFAULTS, SECTIONS, read_limits
from anban.errors import InputError

PAGE = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")


def test_every_threshold_is_explained() -> None:
    lines = DEFAULTS.read_text(encoding="utf-8").splitlines()
    explained = False
    for line in lines:
        if re.match(r"  \w+:", line):
            assert explained, f"no comment above '{line}'"
        elif not re.match(r"  #", line):
            explained = False
        else:
            explained = True


def test_every_section_is_read() -> None:
    assert set(read_limits()) == set(SECTIONS)


def test_the_page_tells_of_every_problem_as_it_is() -> None:
    rows = re.findall(r"^\| (`.+?) \| (\d?) ?\| (\w+) \|", PAGE, re.MULTILINE)
    told = {name: (number, kept) for names, number, kept in rows for name in re.findall(r"`(\w+)`", names)}
    languages = {name for name in PROBLEMS if name.endswith("_text")}
    assert {name for name in PROBLEMS if name not in told} == set()
    for name in PROBLEMS.keys() - languages:
        number = str(PROBLEMS[name].number or "")
        assert told[name] == (number, "yes" if PROBLEMS[name].unfit else "no"), name


def test_the_example_of_the_page_can_be_read(limits_file: Callable[[str], Path]) -> None:
    example = re.search(r"```yaml\n(quality:.+?)```", PAGE, re.DOTALL)
    assert example is not None
    limits = read_limits(limits_file(example[1]))
    assert limits["quality"].least_pixels == 1_000_000
    assert not limits["clean"].condemns("blurred")
    assert limits["clean"].condemns("duplicate")


@pytest.mark.parametrize(
    "text", ["quality: {contrast: 2}", "archives: {most_depth: 0}", "quality: {edge_width: wide}"]
)
def test_a_value_out_of_range_is_refused(text: str, limits_file: Callable[[str], Path]) -> None:
    with pytest.raises(InputError):
        read_limits(limits_file(text))
