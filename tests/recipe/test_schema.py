from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Interval, MultipleOf
from torch import Tensor

from anban.errors import InputError
from anban.recipe.schema import Arguments, Choice, Collection, bind, convert, parameters, pick, resolve


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, float, 3.0),
        (1e3, int, 1000),
        ("no", bool, False),
        ("On", bool, True),
        (True, bool, True),
        (None, int | None, None),
        (2, int | str, 2),
        ("a", Literal["a", "b"], "a"),
        ([1, 2], tuple[float, float], [1.0, 2.0]),
        ([1, 2, 3], list[int], [1, 2, 3]),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
    ],
)
def test_convert(value: Any, annotation: Any, expected: Any) -> None:
    result = convert(value, annotation, "x")
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        ("5", int, "a whole number"),
        (1.5, int, "a whole number"),
        (True, int, "a whole number"),
        (True, float, "a finite number"),
        (math.inf, float, "a finite number"),
        (1, str, "a word"),
        ("maybe", bool, "true or false"),
        (1, bool, "true or false"),
        (None, int, "a whole number"),
        ("c", Literal["adam", "sgd"], "one of adam, sgd"),
        ([1], tuple[int, int], "2 values"),
        (3, list[int], "a list"),
        (1.2, Annotated[float, Interval(ge=0, le=1)], "at most 1"),
        (-0.1, Annotated[float, Interval(ge=0, le=1)], "at least 0"),
        (7, Annotated[int, MultipleOf(2)], "a multiple of 2"),
    ],
)
def test_convert_refuses(value: Any, annotation: Any, message: str) -> None:
    with pytest.raises(InputError, match="x") as error:
        convert(value, annotation, "x")
    assert message in str(error.value)


@dataclass
class Example:
    """For the tests below."""

    width: int
    rate: float = 0.5
    names: list[str] = field(default_factory=lambda: ["a"])


def example_loss(logit: Tensor, target: Tensor, *, gamma: float = 2.0, valid: Tensor | None = None) -> float:
    return gamma


HERE = __name__


@pytest.fixture(autouse=True)
def _allow_this_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anban.recipe.schema.plugins", lambda: {"tests": HERE.split(".")[0]})
    import sys

    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


def test_tensors_are_not_recipe_keys() -> None:
    assert list(parameters(example_loss)) == ["gamma"]
    assert parameters(Example)["names"][1] == ["a"]


def test_bind_fills_defaults_and_says_which() -> None:
    bound, defaults = bind({"part": Arguments(f"{HERE}:Example")}, {"part": {"width": 3}})
    assert bound == {"part": {"width": 3, "rate": 0.5, "names": ["a"]}}
    assert defaults == {"part.rate", "part.names"}


def test_unknown_keys_get_a_suggestion() -> None:
    sections = {"part": Arguments(f"{HERE}:Example")}
    with pytest.raises(InputError, match=r"(?s)'part.widht'.*did you mean 'part.width'"):
        bind(sections, {"part": {"widht": 3}})
    with pytest.raises(InputError, match=r"(?s)'prt'.*did you mean 'part'"):
        bind(sections, {"prt": {}})


def test_a_missing_value_is_asked_for() -> None:
    with pytest.raises(InputError, match=r"(?s)needed here.*part\.width"):
        bind({"part": Arguments(f"{HERE}:Example")}, {})


def test_choice_and_collection() -> None:
    table = {"loss": f"{HERE}:example_loss"}
    bound, _ = bind({"one": Choice(table)}, {"one": "loss"})
    assert bound["one"] == {"name": "loss", "gamma": 2.0}
    many = Collection(table, common={"weight": (float, 1.0)})
    bound, _ = bind({"many": many}, {"many": {"loss": {"gamma": 3}}})
    assert bound["many"] == {"loss": {"weight": 1.0, "gamma": 3.0}}
    assert bind({"many": many}, {"many": {"loss": None}})[0] == {"many": {}}
    with pytest.raises(InputError, match=r"(?s)'los'.*did you mean 'loss'"):
        bind({"many": many}, {"many": {"los": {}}})


@pytest.mark.parametrize(
    "address", ["os:system", "subprocess:Popen", "anban.recipe.yamlfile:yaml.load", "builtins:eval"]
)
def test_names_outside_the_package_are_refused(address: str) -> None:
    with pytest.raises(InputError):
        resolve(address)


def test_what_a_module_of_ours_merely_imports_cannot_be_called() -> None:
    with pytest.raises(InputError):
        resolve("anban.recipe.recipe:copy")
    with pytest.raises(InputError):
        resolve("anban.errors:annotations")
    assert pick({}, "anban.errors:InputError", "x") is InputError
