"""Reading YAML without its traps.

`5e-4` is a number; `no`, `on`, `yes`, `off` stay words until a schema asks for a truth value; `012` is twelve;
a repeated key is an error. Nothing but plain values can come out of a file.
"""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from anban.errors import InputError

_FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
                    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$")  # fmt: skip


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader with the scalar rules of YAML 1.2 and a check for repeated keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Unusable(f"line {key.start_mark.line + 1} uses a list or map as a key")
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                line = key.start_mark.line + 1
                raise _Unusable(f"key '{key.value}' is given twice (lines {seen[key.value]} and {line})")
            seen[key.value] = key.start_mark.line + 1
        return dict(super().construct_mapping(node, deep=True))


class _Unusable(Exception):
    pass


def _integer(_: Any, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    return int(text, 16) if "x" in text.lower() else int(text)


for _tag, _pattern, _first in (
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), "~nN\0"),
    ("int", re.compile(r"^[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F_]+)$"), "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("merge", re.compile(r"^(?:<<)$"), "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", _pattern, ["" if c == "\0" else c for c in _first]
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def parse(text: str, where: object) -> Any:
    """The plain value that `text` stands for.

    Raises:
        InputError: the text is no YAML, repeats a key, or asks for anything but plain values.
    """
    return copy.deepcopy(_parsed(text, str(where)))


@lru_cache(maxsize=1024)  # long chains of bases share most of their files
def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except _Unusable as error:
        raise InputError(
            f"In this YAML, {error}.", where=where, expected="each key once, and a word"
        ) from None
    except ValueError as error:
        raise InputError(f"A number cannot be read: {error}.", where=where) from None
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise InputError(f"This is not readable as plain YAML: {detail}", where=where,
                         expected="maps, lists, numbers, words, true/false/null") from None  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds (an empty file is an empty mapping)."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The file cannot be read: {error}", where=path) from None
    value = parse(text, path)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InputError(
            f"Found a {type(value).__name__}.", where=path, expected="a mapping of names to values"
        )
    return value
