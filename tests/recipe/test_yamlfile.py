from __future__ import annotations

from pathlib import Path

import pytest

from anban.errors import InputError
from anban.recipe.yamlfile import parse, read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("1e3", 1e3),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("012", 12),
        ("1_000", 1000),
        ("0x10", 16),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("null", None),
        ("~", None),
        ("", None),
        ("'5e-4'", "5e-4"),
        ("1.2.3", "1.2.3"),
        ("[1, 2e0, no]", [1, 2.0, "no"]),
    ],
)
def test_scalars(text: str, value: object) -> None:
    found = parse(text, "here")
    assert found == value
    assert type(found) is type(value)


def test_a_repeated_key_is_refused_with_both_lines() -> None:
    with pytest.raises(InputError, match=r"'lr' is given twice \(lines 2 and 4\)"):
        parse("optimizer:\n  lr: 1\n  momentum: 0\n  lr: 2\n", "here")


@pytest.mark.parametrize("text", ["? [a, b]\n: 1", "a: 0x_", "a: {? {b: 1} : 2}"])
def test_odd_keys_and_numbers_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="here"):
        parse(text, "here")


def test_nothing_but_plain_values() -> None:
    with pytest.raises(InputError, match="plain YAML"):
        parse("!!python/object/apply:os.system ['true']", "here")


def test_a_merge_key_still_works() -> None:
    assert parse("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}", "here")["b"] == {"p": 1, "q": 3}


def test_a_file_must_be_a_mapping(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("- 1")
    with pytest.raises(InputError, match=r"(?s)list.*r\.yaml.*mapping"):
        read(file)
    file.write_text("")
    assert read(file) == {}
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "absent.yaml")
