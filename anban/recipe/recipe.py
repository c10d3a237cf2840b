"""A recipe: a base plus a difference, made into one complete configuration that knows where each value came from."""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import anban
from anban.errors import InputError
from anban.recipe import schema, yamlfile

#: Keys that describe a recipe without being part of the experiment.
DESCRIPTION = (
    "id",
    "base",
    "title",
    "note",
    "original",
    "recorded",
    "finding",
    "decision",
    "expected",
    "command",
)
#: Parts of the configuration that change how a run is carried out, not what it computes.
NOT_THE_EXPERIMENT = ("seed", "machine")


@dataclass(frozen=True)
class Recipe:
    """A complete experiment.

    Attributes:
        id: the catalogue's or our own name, `task/name`.
        config: every section, complete, as plain values; also `task` and `seed`.
        sources: dotted key -> recipe id, "command line" or "default".
        description: title, note, original words, recorded scores ... of the recipe's own file.
        base: id of the recipe this one differs from, or None.
        difference: dotted key -> value, against the base (or against the recipe's own file where it has no base).
    """

    id: str
    config: dict[str, Any]
    sources: dict[str, str]
    description: dict[str, Any]
    base: str | None
    difference: dict[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return str(self.config["task"])

    @property
    def title(self) -> str:
        return str(self.description.get("title") or self.id)

    @property
    def hash(self) -> str:
        """12 hex digits over the effective configuration: same experiment, same hash, whatever it is called."""
        content = {k: v for k, v in self.config.items() if k not in NOT_THE_EXPERIMENT}
        for name, section in task_sections(self.task).items():
            if isinstance(section, schema.Arguments) and (section.places or section.means):
                content[name] = {
                    key: Path(value).name if key in section.places and isinstance(value, str) else value
                    for key, value in content[name].items()
                    if key not in section.means
                }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    def with_seed(self, seed: int) -> Recipe:
        """The same experiment with another seed."""
        return Recipe(
            self.id, {**self.config, "seed": seed}, self.sources, self.description, self.base, self.difference
        )

    def to_yaml(self) -> str:
        """The complete effective recipe as YAML, loadable again."""
        from omegaconf import OmegaConf

        head = {"id": self.id, "base": self.base, "title": self.title}
        escaped = _map_strings(self.config, lambda text: text.replace("${", "\\${"))
        return str(OmegaConf.to_yaml(OmegaConf.create({k: v for k, v in head.items() if v} | escaped)))


# Finding --------------------------------------------------------------------------------------------------------


@cache
def recipe_files() -> dict[str, Path]:
    """Every known recipe: id -> file, from `anban/tasks/<task>/recipes/` and from plug-ins' `recipes/`."""
    folders = sorted(Path(anban.__file__).parent.glob("tasks/*/recipes"))
    roots = {prefix(p.parent.name): p for p in folders if p.is_dir()}
    for name, package in schema.plugins().items():
        if name in roots:
            raise InputError(f"The plug-in '{name}' ({package}) has the name of a task of ours.",
                             where="entry points of the group 'anban.plugins'", do="rename it")  # fmt: skip
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or []) if spec else []:
            roots[name] = Path(location) / "recipes"
    files: dict[str, Path] = {}
    for head, folder in roots.items():
        for file in sorted(folder.rglob("*.yaml")):
            if (twin := files.get(f"{head}/{file.stem}")) is not None:
                raise InputError(f"Two recipes are called {head}/{file.stem}.", where=f"{twin} and {file}")
            files[f"{head}/{file.stem}"] = file
    return files


def list_recipes(task: str | None = None) -> Iterator[dict[str, Any]]:
    """One description per recipe on disk (id, task, base, title, note, recorded); imports and builds nothing.

    Args:
        task: only those of this task, by its name or the prefix of its ids.
    """
    of_prefix = {prefix(name): name for name in known_tasks()}
    for identifier, file in recipe_files().items():
        content = yamlfile.read(file)
        name = identifier.split("/")[0]
        found = content.get("task") or of_prefix.get(name, name)
        if task is None or task in (found, name):
            yield {"id": identifier, "task": found} | {
                key: content.get(key) for key in ("base", "title", "note", "recorded", "original", "decision")
            }


def find(name: str) -> tuple[str, Path]:
    """(id, file) of a recipe given by its id or by the path of a YAML file."""
    files = recipe_files()
    if name in files:
        return name, files[name]
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if _is_file(path):
            return "local/" + (re.sub(r"[^\w.+=-]+", "-", path.stem).strip("-.") or "recipe"), path
        raise InputError("There is no such recipe file.", where=path)
    raise schema.unknown("recipe", name, files, "recipes (anban recipes lists them)")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long for one
        return False


# Loading --------------------------------------------------------------------------------------------------------


def load_recipe(name: str, overrides: Iterable[str] = (), *, seed: int | None = None) -> Recipe:
    """The complete recipe `name` (an id, or the path of a YAML file) with `key.path=value` overrides on top.

    Raises:
        InputError: unknown recipe, key or name, wrong type, value out of range, a chain of bases that loops.
    """
    chain, description = _layers(name)
    identifier = chain[-1][-1][0]
    changes = _together([*map(parse_override, overrides), *([{"seed": seed}] if seed is not None else [])])
    last = _with_borrowed(("command line", changes), "command line", ())
    config, sources = _compose([layer for recipe in (*chain, last) for layer in recipe])
    base = chain[-2][-1][0] if len(chain) > 1 else None
    difference: dict[str, Any] = {}
    if base or changes:
        parent, _ = _compose([layer for recipe in (chain[:-1] if base else chain) for layer in recipe])
        difference = {k: v for k, (_, v) in differences(parent, config).items() if k != "seed"}
    return Recipe(identifier, config, sources, description, base, difference)


def from_config(config: Mapping[str, Any], where: object, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe that a run folder or checkpoint carries, checked again against today's signatures."""
    content = dict(config)
    description = {key: content.pop(key) for key in DESCRIPTION if key in content}
    identifier = str(description.get("id", "local/recipe"))
    changes = _together(map(parse_override, overrides))
    try:
        bound, sources = _compose([(identifier, content), ("command line", changes)])
    except InputError as error:
        raise InputError(f"The stored recipe does not fit this version. {error}", where=where) from None
    return Recipe(identifier, bound, sources, description, description.get("base"))


def parse_override(text: str) -> dict[str, Any]:
    """`key.path=value` as a nested map; the value is read as YAML."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise InputError(f"Found '{text}'.", where="command line", expected="key.path=value")
    return _expand({key.strip(): yamlfile.parse(value, f"command line, {key.strip()}")}, "command line")


def _together(changes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Overrides as one layer, so that the order of `optimizer.lr=...` and `optimizer.name=...` does not matter."""
    layer: dict[str, Any] = {}
    for change in changes:
        _merge(layer, change, {}, "")
    return layer


Layer = tuple[str, dict[str, Any]]  # where it comes from, and what it says


def _layers(name: str, above: tuple[str, ...] = ()) -> tuple[list[list[Layer]], dict[str, Any]]:
    """Per recipe of the chain, from the complete base to `name`, its layers; and the description in the last file.

    Args:
        above: recipes whose sections are being taken from this one.
    """
    chain: list[list[Layer]] = []
    description: dict[str, Any] | None = None
    current: str | None = name
    seen: dict[Path, str] = {}
    while current is not None:
        identifier, file = find(current)
        content = yamlfile.read(file)
        if file.resolve() in seen:
            names = " -> ".join([*seen.values(), identifier])
            raise InputError(f"The bases go round in a circle: {names}.", where=file)
        seen[file.resolve()] = identifier
        own = {key: content.pop(key) for key in DESCRIPTION if key in content}
        description = own if description is None else description
        chain.append(_with_borrowed((identifier, _expand(content, file)), file, (*above, identifier)))
        current = own.get("base")
        if not isinstance(current, str | None):
            raise InputError(
                f"Found {current!r}.", where=f"{file}, key 'base'", expected="the id of a recipe, or a file"
            )
        if current is not None and current not in recipe_files():
            beside = file.parent / f"{current}"
            current = str(beside) if _is_file(beside) else current
    return chain[::-1], description or {}


def _with_borrowed(layer: Layer, where: object, above: tuple[str, ...]) -> list[Layer]:
    """The layers of one recipe: sections that are `like` those of another come first, taken afresh, then its own words."""
    borrowed: list[Layer] = []
    for section, value in layer[1].items():
        other = value.pop("like", None) if isinstance(value, dict) else None
        if other is None:
            continue
        place = f"{where}, key '{section}.like'"
        if not isinstance(other, str) or other in above:
            raise InputError(
                f"Found {other!r}.", where=place, expected="a recipe whose section does not lead back here"
            )
        layers = [each for recipe in _layers(other, above)[0] for each in recipe if section in each[1]]
        if not layers:
            raise InputError(f"The recipe '{other}' says nothing about '{section}'.", where=place)
        borrowed.append((other, {section: None}))  # nothing of the base's section stays
        borrowed += [(source, {section: content[section]}) for source, content in layers]
    return [*borrowed, layer]


def _compose(layers: list[tuple[str, dict[str, Any]]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Merge the layers, resolve references, bind to the signatures of the task's sections."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, layer in layers:
        _merge(merged, layer, sources, source)
    try:
        plain: Any = OmegaConf.to_container(OmegaConf.create(merged), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise InputError(f"A reference or required value cannot be resolved: {str(error).splitlines()[0]}",
                         where=layers[-1][0], do="set the value in the recipe or on the command line") from None  # fmt: skip
    task, seed = plain.pop("task", None), plain.pop("seed", 0)
    if not isinstance(task, str):
        raise InputError(
            f"Found {task!r}.", where=f"{layers[0][0]}, key 'task'", expected="the name of a task"
        )
    sections = task_sections(task, layers[0][0])
    bound, defaults = schema.bind(sections, plain)
    config = {"task": task, "seed": schema.convert(seed, int, "seed"), **bound}
    final = {}
    for key, _ in flatten(config):
        final[key] = "default" if key in defaults else _source(sources, key)
    return config, final


@cache
def task_sections(task: Any, where: str = "") -> dict[str, schema.Section]:
    """The sections a recipe of this task has (its `task.py` declares them as SECTIONS)."""
    known = known_tasks()
    if task not in known and task not in schema.plugins():
        raise schema.unknown("task", task, [*known, *schema.plugins()], f"{where}, key 'task'")
    sections: dict[str, schema.Section] = importlib.import_module(f"{task_package(task)}.task").SECTIONS
    return sections


def known_tasks() -> list[str]:
    """The tasks of the package: folders of `anban.tasks` that hold a `task.py`."""
    return sorted(p.parent.name for p in (Path(anban.__file__).parent / "tasks").glob("*/task.py"))


def prefix(task: str) -> str:
    """What the ids of a task's recipes, studies and networks begin with: the PREFIX of its package, or its own name."""
    return str(getattr(importlib.import_module(task_package(task)), "PREFIX", task))


def task_package(task: str) -> str:
    """The package a task lives in: a plug-in's own, or a folder of `anban.tasks`."""
    return schema.plugins().get(task, f"anban.tasks.{task}")


def _merge(
    into: dict[str, Any], layer: Mapping[str, Any], sources: dict[str, str], source: str, path: str = ""
) -> None:
    """Put a layer on top. A new `name` starts its map afresh: the old choice's arguments do not fit the new one."""
    for key, value in layer.items():
        dotted = f"{path}{key}"
        old = into.get(key)
        if isinstance(old, dict) and "name" in old and isinstance(value, str):
            value = {"name": value}
        if isinstance(old, str) and isinstance(value, dict):  # `model: change/bit`, then `model.stages: 3`
            old = into[key] = {"name": old}
            sources[f"{dotted}.name"] = sources.pop(dotted, source)
        if isinstance(old, dict) and isinstance(value, dict):
            if "name" in old and "name" in value and value["name"] != old["name"]:
                old.clear()
                for stale in [k for k in sources if k.startswith(dotted + ".")]:
                    del sources[stale]
            _merge(old, value, sources, source, dotted + ".")
        else:
            into[key] = copy.deepcopy(value)
            if isinstance(old, dict):
                for stale in [k for k in sources if k.startswith(dotted + ".")]:
                    del sources[stale]
            sources[dotted] = source


def _source(sources: Mapping[str, str], key: str) -> str:
    while key not in sources and "." in key:
        key = key.rpartition(".")[0]
    return sources.get(key, "default")


def _expand(content: Mapping[str, Any], where: object) -> dict[str, Any]:
    """`model.fuse: gated` means `model: {fuse: gated}`, at the top level of a file."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        *parents, last = key.split(".")
        inner = result
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise InputError(f"'{key}' and '{parent}' contradict each other.", where=where)
        if last in inner and (not isinstance(inner[last], dict) or not isinstance(value, dict)):
            raise InputError(f"'{key}' is given twice.", where=where)
        if isinstance(inner.get(last), dict):
            inner[last].update(value)
        else:
            inner[last] = copy.deepcopy(value)
    return result


def _map_strings(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {k: _map_strings(v, change) for k, v in value.items()}
    if isinstance(value, list):
        return [_map_strings(v, change) for v in value]
    return change(value) if isinstance(value, str) else value


# Comparing ------------------------------------------------------------------------------------------------------


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; lists and empty maps are leaves."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


ABSENT = "(absent)"


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """dotted key -> (value in a, value in b) wherever two configurations differ.

    A map that is empty on one side only is not listed itself: the keys it lacks are.
    """
    left, right = dict(flatten(a)), dict(flatten(b))
    keys = [*left, *(k for k in right if k not in left)]
    pairs = {k: (left.get(k, ABSENT), right.get(k, ABSENT)) for k in keys}
    return {
        k: pair
        for k, pair in pairs.items()
        if pair[0] != pair[1] and pair not in (({}, ABSENT), (ABSENT, {}))
    }
