"""What readers of records count on: JSON values of the shape that they should have."""

from __future__ import annotations

import json
import math
from types import UnionType
from typing import Any, NamedTuple, TypeAlias

#: How deep lists and objects of a record may lie in each other.
DEEPEST = 64


class Maybe(NamedTuple):
    """Null, or a value of this shape; of an object's key also that it is missing."""

    shape: Shape


#: A type; `Maybe`; a list with the shape of its items; or an object with the shapes of its keys, where the key EACH stands
#: for all keys.
Shape: TypeAlias = "type | UnionType | Maybe | list[Any] | dict[str, Any]"
EACH = "*"
NUMBER = int | float


def from_json(text: str) -> Any:
    """The value that JSON text stands for.

    Raises:
        ValueError: it is no JSON, or nested too deeply to be a record.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if text.count("{") + text.count("[") > DEEPEST and _deeper(value, DEEPEST):
        raise ValueError("it is nested too deeply")
    return value


def misfit(value: Any, shape: Shape) -> str | None:
    """Where inside `value` the first one lies that has not its shape ("scores.3.name"); None where all have.

    Whole numbers have 64 bits at most, other numbers are finite.
    """
    if isinstance(shape, Maybe):
        return None if value is None else misfit(value, shape.shape)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return ""
        if EACH in shape:
            inside = [(key, item, shape[EACH]) for key, item in value.items()]
        else:
            inside = [(key, value.get(key), each) for key, each in shape.items()]
    elif isinstance(shape, list):
        if not isinstance(value, list):
            return ""
        inside = [(str(number), item, shape[0]) for number, item in enumerate(value)]
    else:
        return None if isinstance(value, shape) and _sane(value) else ""
    for key, item, each in inside:
        if (found := misfit(item, each)) is not None:
            return f"{key}.{found}".removesuffix(".")
    return None


def _sane(value: Any) -> bool:
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return not isinstance(value, float) or math.isfinite(value)


def _deeper(value: Any, depth: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth < 0 or any(_deeper(each, depth - 1) for each in inside)
