"""A signature is a schema: sections of a recipe are checked against the constructors they will call.

A task describes its sections with three words:

* `Arguments(address)`: the section holds the arguments of one callable;
* `Choice(table)`: the section holds `name` (a key of the table, or a full address) and that callable's arguments;
* `Collection(table)`: the section is a map; each key is a name of the table, its value that callable's arguments,
  and `null` removes it.

An argument may be a dataclass: a group of settings, a map in the recipe. `construct` makes it one again for the call.

An address is `package.module:object`. It resolves only inside `anban` and inside packages that declare the entry
point group `anban.plugins`, and only to a class or function that was defined there.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import importlib
import importlib.metadata
import inspect
import operator
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, Union

import annotated_types

from anban.errors import InputError

Positive = Annotated[float, annotated_types.Gt(0)]
NonNegative = Annotated[float, annotated_types.Ge(0)]
Share = Annotated[float, annotated_types.Interval(ge=0, le=1)]
Count = Annotated[int, annotated_types.Ge(1)]

_LARGEST = sys.float_info.max
_WORDS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


@dataclass(frozen=True)
class Arguments:
    """A section that holds the arguments of the callable at `address`.

    Of the keys in `places` (folders) only the folder's name makes the experiment, and the keys in `means` (how the work
    is done) do not make it at all: neither changes what the recipe's hash says.
    """

    address: str
    places: tuple[str, ...] = ()
    means: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """A section that names one entry of `table` and holds its arguments."""

    table: Mapping[str, str]


@dataclass(frozen=True)
class Collection:
    """A section that maps names of `table` to arguments; `common` are arguments every entry takes besides its own."""

    table: Mapping[str, str]
    common: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


Section = Arguments | Choice | Collection


# Addresses ------------------------------------------------------------------------------------------------------


@cache
def plugins() -> dict[str, str]:
    """Entry points of the group `anban.plugins`: name -> top-level package."""
    found = importlib.metadata.entry_points(group="anban.plugins")
    return {entry.name: entry.value.split(":")[0].split(".")[0] for entry in found}


def resolve(address: str, where: object = None) -> Callable[..., Any]:
    """The class or function at `package.module:object`.

    Raises:
        InputError: the address leaves `anban` and its plug-ins, or nothing callable is defined there.
    """
    allowed = {"anban", *plugins().values()}
    module_name, _, attribute = address.partition(":")
    if module_name.split(".")[0] not in allowed:
        raise InputError(f"'{address}' lies outside the packages a recipe may name.", where=where,
                         expected=f"module:object inside {', '.join(sorted(allowed))}",
                         do="declare the package under the entry point group 'anban.plugins'")  # fmt: skip
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"There is no module '{error.name}'.", where=where or address) from None
    target = getattr(module, attribute, None) if attribute.isidentifier() else None
    if not callable(target) or getattr(target, "__module__", "").split(".")[0] not in allowed:
        names = [n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module_name]
        raise InputError(f"'{address}' is no class or function of that module.", where=where,
                         expected=f"one of {', '.join(names)}" if names else None)  # fmt: skip
    return typing.cast(Callable[..., Any], target)


def pick(table: Mapping[str, str], name: Any, where: str) -> Callable[..., Any]:
    """The callable that `name` means: a key of `table`, or an address of its own."""
    if isinstance(name, str) and name in table:
        return resolve(table[name], where)
    if isinstance(name, str) and ":" in name:
        return resolve(name, where)
    raise unknown("name", name, table, where)


def unknown(kind: str, name: Any, known: Iterable[str], where: object) -> InputError:
    """The error for a name that is not among the known ones, with the nearest of them."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    return InputError(f"Unknown {kind} '{name}'.", where=where,
                      expected=f"one of {', '.join(known)}" if known else "nothing here",
                      do=f"did you mean {' or '.join(repr(n) for n in near)}?" if near else None)  # fmt: skip


# Binding --------------------------------------------------------------------------------------------------------


def bind(sections: Mapping[str, Section], config: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The complete configuration: every value checked, every default filled in.

    Returns:
        the configuration, and the dotted keys whose values are defaults of signatures.
    """
    bound: dict[str, Any] = {}
    defaults: set[str] = set()
    for name in config:
        if name not in sections:
            raise unknown("key", name, sections, "top level of the recipe")
    for name, section in sections.items():
        bound[name] = _bind_section(name, section, config.get(name), defaults)
    return bound, defaults


def _bind_section(path: str, section: Section, value: Any, defaults: set[str]) -> dict[str, Any]:
    if isinstance(value, str) and isinstance(section, Choice):
        value = {"name": value}
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise InputError(f"Found {_show(value)}.", where=path, expected="a map of names to values")
    if isinstance(section, Arguments):
        target = resolve(section.address, path)
        arguments = _bind_arguments(path, target, value, {}, defaults)
        if dataclasses.is_dataclass(target):
            target(**arguments)  # settings check themselves: what cannot go together is refused here
        return arguments
    if isinstance(section, Choice):
        if "name" not in value:
            raise InputError("No name is given.", where=f"{path}.name",
                             expected=f"one of {', '.join(sorted(section.table))}")  # fmt: skip
        target = pick(section.table, value["name"], f"{path}.name")
        rest = {key: v for key, v in value.items() if key != "name"}
        return {"name": value["name"], **_bind_arguments(path, target, rest, {}, defaults)}
    result = {}
    for name, arguments in value.items():
        if arguments is None:  # removed by a difference
            continue
        target = pick(section.table, name, path)
        if not isinstance(arguments, dict):
            raise InputError(f"Found {_show(arguments)}.", where=f"{path}.{name}",
                             expected="a map of arguments, {} for none, or null to remove it")  # fmt: skip
        result[name] = _bind_arguments(f"{path}.{name}", target, arguments, section.common, defaults)
    return result


def construct(target: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call with bound arguments, groups of settings made into the dataclasses that they stand for."""
    annotations = {name: annotation for name, (annotation, _) in parameters(target).items()}
    made = {
        key: construct(annotations[key], value) if _is_group(annotations.get(key)) else value
        for key, value in arguments.items()
    }
    return target(**made)


@cache
def parameters(target: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """name -> (annotation, default) of what a recipe may set; tensors, modules and the like are the program's."""
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    fields = dataclasses.fields(target) if dataclasses.is_dataclass(target) else ()
    made_by = {f.name: f.default_factory for f in fields if f.default_factory is not dataclasses.MISSING}
    found = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation, default = hints.get(name, Any), parameter.default
        if (made := made_by.get(name)) is not None:
            default = made()
        if _plain(annotation):
            found[name] = (annotation, default)
    return found


def _bind_arguments(
    path: str,
    target: Callable[..., Any],
    given: Mapping[str, Any],
    common: Mapping[str, tuple[Any, Any]],
    defaults: set[str],
) -> dict[str, Any]:
    known = {**common, **parameters(target)}
    for key in given:
        if key not in known:
            raise unknown("key", f"{path}.{key}", [f"{path}.{k}" for k in known], _home(target))
    bound: dict[str, Any] = {}
    for key, (annotation, default) in known.items():
        where = f"{path}.{key}"
        if _is_group(annotation):
            own = given.get(key, {})
            if isinstance(own, annotation):  # from Python, the group itself
                own = dataclasses.asdict(own)
            if not isinstance(own, dict):
                raise InputError(f"Found {_show(own)}.", where=where, expected="a map of names to values")
            start = {} if default is inspect.Parameter.empty else dataclasses.asdict(default)
            bound[key] = _bind_group(where, annotation, own, start, defaults)
        elif key in given:
            bound[key] = convert(given[key], annotation, where)
        elif default is inspect.Parameter.empty:
            raise InputError("A value is needed here.", where=where, expected=_name(annotation),
                             do=f"set {where}=... on the command line or in the recipe")  # fmt: skip
        else:
            bound[key] = list(default) if isinstance(default, tuple) else copy.copy(default)
            defaults.add(where)
    return bound


def _bind_group(
    path: str,
    group: Callable[..., Any],
    given: Mapping[str, Any],
    start: Mapping[str, Any],
    defaults: set[str],
) -> dict[str, Any]:
    """A group's settings; what is not given is as the caller's default has it."""
    bound = _bind_arguments(path, group, {**start, **given}, {}, defaults)
    defaults.update(f"{path}.{key}" for key in start if key not in given)
    construct(group, bound)  # groups check themselves, as settings do
    return bound


def _is_group(annotation: Any) -> bool:
    return inspect.isclass(annotation) and dataclasses.is_dataclass(annotation)


def convert(value: Any, annotation: Any, where: str) -> Any:
    """`value` as the annotation wants it.

    Raises:
        InputError: wrong type, or outside the annotated range.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin is Annotated:
        result = convert(value, arguments[0], where)
        _in_range(result, arguments[1:], where)
        return result
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        errors = []
        for option in arguments:
            if option is type(None):
                continue
            try:
                return convert(value, option, where)
            except InputError as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        raise InputError(f"Found {_show(value)}.", where=where, expected=_name(annotation))
    if origin is Literal:
        if value in arguments and type(value) in {type(option) for option in arguments}:
            return value
        words = [str(option) for option in arguments]
        raise unknown("value", value, words, where)
    if origin in (list, tuple) or annotation in (list, tuple):
        if not isinstance(value, list | tuple):
            raise InputError(f"Found {_show(value)}.", where=where, expected="a list, such as [1, 2]")
        if origin is tuple and arguments and arguments[-1] is not Ellipsis:
            if len(arguments) != len(value):
                raise InputError(
                    f"Found {len(value)} values.", where=where, expected=f"{len(arguments)} values"
                )
            return [
                convert(v, t, f"{where}.{i}") for i, (v, t) in enumerate(zip(value, arguments, strict=True))
            ]
        inner = arguments[0] if arguments else Any
        return [convert(v, inner, f"{where}.{i}") for i, v in enumerate(value)]
    if origin is dict or annotation is dict:
        if not isinstance(value, dict):
            raise InputError(f"Found {_show(value)}.", where=where, expected="a map of names to values")
        inner = arguments[1] if arguments else Any
        return {k: convert(v, inner, f"{where}.{k}") for k, v in value.items()}
    if annotation is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _WORDS:
            return _WORDS[value.lower()]
    elif annotation is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():  # 1e3 iterations
            return int(value)
    elif annotation is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST:
            return float(value)
    elif annotation is str and isinstance(value, str):
        return value
    raise InputError(f"Found {_show(value)}.", where=where, expected=_name(annotation))


_LIMITS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "gt": (operator.gt, "a value above"),
    "ge": (operator.ge, "a value of at least"),
    "lt": (operator.lt, "a value below"),
    "le": (operator.le, "a value of at most"),
    "multiple_of": (lambda value, step: value % step == 0, "a multiple of"),
    "min_length": (lambda value, least: len(value) >= least, "a length of at least"),
    "max_length": (lambda value, most: len(value) <= most, "a length of at most"),
}


def _in_range(value: Any, constraints: tuple[Any, ...], where: str) -> None:
    for constraint in constraints:
        grouped = isinstance(constraint, annotated_types.GroupedMetadata)
        for part in constraint if grouped else (constraint,):
            for name, (holds, words) in _LIMITS.items():
                limit = getattr(part, name, None)
                if limit is not None and not holds(value, limit):
                    raise InputError(f"Found {_show(value)}.", where=where, expected=f"{words} {limit}")


def _plain(annotation: Any) -> bool:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _plain(arguments[0])
    if origin in (Union, types.UnionType):
        return all(_plain(a) for a in arguments)
    if origin is Literal:
        return True
    if origin in (list, tuple, dict):
        return all(_plain(a) for a in arguments if a is not Ellipsis)
    return _is_group(annotation) or annotation in (
        Any,
        int,
        float,
        str,
        bool,
        list,
        tuple,
        dict,
        type(None),
        None,
    )


def _name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _name(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_name(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is not None:
        return f"{origin.__name__} of {', '.join(_name(a) for a in arguments if a is not Ellipsis)}"
    names = {
        int: "a whole number",
        float: "a finite number",
        str: "a word",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(annotation, str(annotation))


def _show(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})" if value is not None else "null"


def _home(target: Callable[..., Any]) -> str:
    return f"arguments of {target.__module__}:{target.__qualname__}"
