"""Reading YAML without its traps.

`5e-4` is a number; `no`, `on`, `yes`, `off` stay words until a schema asks for a truth value; `012` is twelve;
a repeated key is an error. Nothing but plain values can come out of a file, and no more of them than a person could have
meant: aliases of aliases, or a thousand brackets, are refused before anything is built.
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

#: How deep lists and maps may lie in each other, and how many values a text may stand for with its aliases written out.
DEEPEST, MOST = 64, 100_000


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader with the scalar rules of YAML 1.2 and a check for repeated keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    # The other tags of the safe loader make dates, sets and bytes.
    yaml_constructors = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise _Unusable(f"line {node.start_mark.line + 1} calls a map what is none")
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


def _integer(loader: Any, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    value = int(text, 16) if "x" in text.lower() else int(text)
    if not -(2**63) <= value < 2**64:
        raise _Unusable(f"the number in line {node.start_mark.line + 1} has more than 64 bits")
    return value


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
        _refuse_growth(text)
        return yaml.load(text, Loader=_Loader)
    except _Unusable as error:
        raise InputError(
            f"In this YAML, {error}.", where=where, expected="plain maps and lists, each key once"
        ) from None
    except (ValueError, KeyError) as error:  # `!!float x`, `!!bool x`
        raise InputError(f"A number or truth value cannot be read: {error}.", where=where) from None
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise InputError(f"This is not readable as plain YAML: {detail}", where=where,
                         expected="maps, lists, numbers, words, true/false/null") from None  # fmt: skip


def _refuse_growth(text: str) -> None:
    """Refuse, event by event, what is nested too deeply or stands for too much (the loader itself would recurse and copy)."""
    count = 0
    sizes: dict[str, int] = {}  # of what each anchor stands for
    opened: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise _Unusable(f"*{event.anchor} in line {line} stands for nothing before it")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.NodeEvent):
            count += 1
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append((event.anchor, count - 1))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
        if len(opened) > DEEPEST:
            raise _Unusable(f"line {line} is nested more than {DEEPEST} deep")
        if count > MOST:
            raise _Unusable(f"there are more than {MOST} values, aliases written out")


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
