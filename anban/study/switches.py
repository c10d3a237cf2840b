"""In which choices do effective recipes differ? The columns of an ablation table, and the factors of a regression."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any


class Missing(Enum):
    """What stands for a value that a recipe does not have."""

    ABSENT = "(absent)"  # a choice of its own: the key could be there
    UNUSED = "–"  # no choice: what the key belongs to is not there, or is of another name


def switches(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Each choice in which the recipes (dotted key -> value) differ, with its value in every one of them.

    A part with a name (`model.name`) is a choice called after the part (`model`); an argument that only some of the
    names take is a choice among the recipes that have it, and `Missing.UNUSED` in the others. A group of keys that some
    recipes lack altogether (`augment.flip`) is a choice of True or False, and its keys are choices among those that
    have it.
    """
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe))
    named = {
        key.removesuffix(".name")
        for key in keys
        if key.endswith(".name") and len({recipe.get(key) for recipe in recipes}) > 1
    }
    found: dict[str, list[Any]] = {}
    for key in keys:
        values = [recipe.get(key, Missing.ABSENT) for recipe in recipes]
        part = next((name for name in named if key.startswith(f"{name}.")), None)
        lacking = [recipe for recipe in recipes if key not in recipe]
        group = _lacked_group(key, lacking) if lacking and all(lacking) else None
        if part is not None and key == f"{part}.name":
            found[part] = values
            continue
        if part is None and group is not None and group != key:
            found.setdefault(group, [any(k.startswith(f"{group}.") for k in recipe) for recipe in recipes])
        if part is not None or (group is not None and group != key):
            values = [Missing.UNUSED if value is Missing.ABSENT else value for value in values]
        if len({plain(value) for value in values if value is not Missing.UNUSED}) > 1:
            found[key] = values
    return found


def plain(value: Any) -> str:
    """A recipe's value as people write it in YAML."""
    if isinstance(value, Missing):
        return str(value.value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _lacked_group(key: str, recipes: Sequence[Mapping[str, Any]]) -> str | None:
    """The largest group of keys around `key` that none of the recipes has anything of; None where there is no such."""
    parts = key.split(".")
    for count in range(1, len(parts)):
        group = ".".join(parts[:count])
        if not any(k.startswith(f"{group}.") for recipe in recipes for k in recipe):
            return group
    return None
