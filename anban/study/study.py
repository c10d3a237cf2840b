"""A study: one base, some differences, several seeds; run, resumed, and written down for comparison.

A study file is YAML:

    title: Does augmentation help?
    question: one sentence, shown at the top of the report
    base: change/demo-fc-siam-diff       # recipe of the base arm, which is called `base` unless `name` says otherwise
    base_title: FC-Siam-diff             # optional: the base arm in tables; by default as its recipe calls itself
    arms:
      no-flip: {set: {augment.flip: null}}            # dotted keys that differ from the base
      tinycd: {title: TinyCD, recipe: change/demo-tinycd}  # or another recipe
      wider:                             # what is expected of an arm, in points of the deciding score, over the base
        set: {model.width: 32}           # or over the arm named: the report has it beside what was measured
        expected: {gain: 1.3, over: no-flip, source: "table 4 of the paper"}
    set: {train.epochs: 10}              # keys set in every arm
    seeds: 2                             # 0 .. n-1, or a list
    compare: {split: test, protocol: whole, metric: f1}  # else the first of the base recipe's eval, and its task's score
    groups: {CNN: [base, tinycd]}        # optional: tables name each arm's group and have their rows in this order

Switches that are to be combined are `axes`. Every combination is an arm, called by its values joined by "-"; the one
whose values are all empty is the base arm, so that `name` is not needed:

    axes:                                # the arms are 0-0 (the base), 0-1, 1-0 and 1-1
      encoder: {0: {}, 1: {model.encoder.sharing: all}}
      decoder: {0: {}, 1: {model.decoder.trunk: []}}

A recipe may be given instead of a study: it is then the only arm.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Len
from loguru import logger

import anban
from anban.errors import InputError
from anban.recipe import Recipe, load_recipe
from anban.recipe.recipe import find, prefix, recipe_files
from anban.recipe.schema import Arguments, bind, unknown
from anban.recipe.yamlfile import read
from anban.record import RunFolder, readable
from anban.record.files import to_json, write_atomically

FORMAT = "anban-study/1"
_ONLY_STUDIES = {
    "question",
    "name",
    "arms",
    "axes",
    "set",
    "seeds",
    "compare",
    "groups",
}  # a recipe has none of them


@dataclass(frozen=True)
class StudyFile:
    """The keys of a study file; see the module's text."""

    base: str
    title: str = ""
    question: str = ""
    name: str = "base"
    base_title: str = ""
    arms: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    set: dict[str, Any] = field(default_factory=dict)
    seeds: Annotated[int, Ge(1)] | Annotated[list[int], Len(1)] = 3
    compare: dict[str, str] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ArmFile:
    """The keys of an arm in a study file."""

    title: str = ""
    recipe: str = ""
    set: dict[str, Any] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExpectedFile:
    """What is expected of an arm, in a study file; `over` is the base arm if empty."""

    gain: float
    over: str = ""
    source: str = ""


@dataclass(frozen=True)
class CompareFile:
    """What decides, in a study file; empty means the first of the base recipe's `eval` and the task's score."""

    split: str = ""
    protocol: str = ""
    metric: str = ""


@dataclass(frozen=True)
class Arm:
    """One line of the comparison: a recipe, and what it changes against the base."""

    name: str
    title: str
    recipe: Recipe
    expected: ExpectedFile | None = None


@dataclass(frozen=True)
class Plan:
    """A study that has been read and checked; nothing has run yet.

    Attributes:
        compare: `split`, `protocol` and `metric`, by which verdicts go; without a metric it is the score that picks the
            runs' checkpoints.
    """

    id: str
    title: str
    question: str
    base: str
    arms: list[Arm]
    seeds: list[int]
    compare: dict[str, str]
    groups: dict[str, list[str]] = field(default_factory=dict)


def study_files() -> dict[str, Path]:
    """Every study that comes with the package: id -> file, from `anban/tasks/<task>/studies/`."""
    files = sorted(Path(anban.__file__).parent.glob("tasks/*/studies/*.yaml"))
    return {f"{prefix(file.parent.parent.name)}/{file.stem}": file for file in files}


def load_plan(name: str, overrides: list[str], seeds: int | None = None) -> Plan:
    """Read a study (an id, a study file, or a recipe) and check every arm.

    Raises:
        InputError: unknown study, key or recipe; two arms with the same effective configuration; groups of what is no
            arm, or an expectation over it.
    """
    files = study_files()
    path = files.get(name, Path(name))
    if name not in files and name not in recipe_files() and not path.is_file():
        raise unknown("study or recipe", name, [*files, *recipe_files()], "anban study")
    if name in recipe_files() or not _ONLY_STUDIES & read(path).keys():
        content: dict[str, Any] = {"base": name, "arms": {}}
        identifier = find(name)[0]
    else:
        content = read(path)
        identifier = name if name in files else f"local/{path.stem}"
    given = _read(StudyFile, "study", content)
    common = [*_as_overrides(given.set), *overrides]
    base = load_recipe(given.base, common)
    base_name, combined = _combinations(given, path) if given.axes else (given.name, {})
    untitled = base.title if base_name == "base" else base_name
    arms = [Arm(base_name, given.base_title or untitled, base)]
    for arm_name, words in [*combined.items(), *given.arms.items()]:
        own = _read(ArmFile, f"arms.{arm_name}", words or {})
        recipe = load_recipe(own.recipe or given.base, [*common, *_as_overrides(own.set)])
        expected = _read(ExpectedFile, f"arms.{arm_name}.expected", own.expected) if own.expected else None
        if expected is not None:
            expected = replace(expected, over=expected.over or base_name)
        arms.append(Arm(str(arm_name), own.title or str(arm_name), recipe, expected))
    _refuse_twins(arms, path)
    _check_groups(given.groups, arms, path)
    _check_expectations(arms, path)
    asked = seeds if seeds is not None else given.seeds
    numbers = list(range(asked)) if isinstance(asked, int) else asked
    if len(set(numbers)) < len(numbers):
        raise InputError(f"A seed is given twice: {numbers}.", where=f"{path}, key 'seeds'")
    compare = _read(CompareFile, "compare", given.compare)
    decides = {
        "split": compare.split or base.config["eval"]["splits"][0],
        "protocol": compare.protocol or base.config["eval"]["protocols"][0],
        "metric": compare.metric,
    }
    for arm in arms:
        for key, place in (("split", "splits"), ("protocol", "protocols")):
            if decides[key] not in arm.recipe.config["eval"][place]:
                raise InputError(f"The arm '{arm.name}' is not evaluated on {key} '{decides[key]}'.", where=path,
                                 expected=f"one of {', '.join(arm.recipe.config['eval'][place])}",
                                 do=f"set compare.{key}, or eval.{place} of the arm")  # fmt: skip
    title = given.title or identifier
    return Plan(identifier, title, given.question, base_name, arms, numbers, decides, given.groups)


Keys = TypeVar("Keys", StudyFile, ArmFile, ExpectedFile, CompareFile)


def _read(kind: type[Keys], name: str, content: Any) -> Keys:
    """The keys of one part of a study file, checked like a recipe's."""
    bound, _ = bind({name: Arguments(f"{kind.__module__}:{kind.__name__}")}, {name: content})
    return kind(**bound[name])


def run_study(
    plan: Plan, out: Path, run: Callable[[Recipe], RunFolder], *, resume: bool = False, leader: bool = True
) -> Path:
    """Run every arm with every seed, arm after arm within a seed, and keep `study.json` true after each run.

    An arm that fails is written down and the others go on.

    Args:
        plan: what `load_plan` returned.
        out: folder of runs; the study goes to `<out>/studies/<id>/`.
        run: trains one recipe (with its seed) and returns its folder, or writes it down for a cluster to train; it
            raises what the run raises.
        leader: whether this process writes; of several that run one study, one does.
        resume: take finished runs of the same experiment and seed from the study's earlier start.

    Returns:
        the path of study.json.
    """
    file = out / "studies" / plan.id / "study.json"
    earlier = _finished(file) if resume else {}
    if file.exists() and leader and not resume:
        file.rename(file.with_name(f"study-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"))
    results: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in plan.arms}
    total = len(plan.arms) * len(plan.seeds)
    done = 0
    if leader:
        _write(file, plan, results)
    for seed in plan.seeds:
        for arm in plan.arms:
            done += 1
            recipe = arm.recipe.with_seed(seed)
            known = earlier.get((recipe.hash, seed))
            if known is not None:
                results[arm.name].append(_line(seed, known, file.parent))
                logger.info(f"[{done}/{total}] {arm.name}, seed {seed}: already finished ({known.path.name})")
            else:
                logger.info(f"[{done}/{total}] {arm.name}, seed {seed}")
                results[arm.name].append(_attempt(run, recipe, seed, file.parent))
            if leader:
                _write(file, plan, results)
    return file


def refresh_study(file: Path) -> None:
    """Bring the states in study.json up to date with its run folders: jobs of a cluster write only into those."""
    content = json.loads(file.read_text(encoding="utf-8"))
    for arm in content["arms"]:
        arm["runs"] = [_as_it_stands(line, file.parent) for line in arm["runs"]]
    write_atomically(file, to_json(content, indent=1) + "\n")


def _as_it_stands(line: dict[str, Any], folder: Path) -> dict[str, Any]:
    if line["path"] is None or not (folder / line["path"] / "run.json").is_file():
        return line
    return _line(line["seed"], RunFolder.open(folder / line["path"]), folder)


def _attempt(run: Callable[[Recipe], RunFolder], recipe: Recipe, seed: int, folder: Path) -> dict[str, Any]:
    try:
        return _line(seed, run(recipe), folder)
    except Exception as error:
        if type(error).__name__ == "Interrupted":  # the user's wish, not this arm's failure
            raise
        logger.error(f"{recipe.id}, seed {seed}: {error}")
        path = getattr(error, "run", None)  # the folder, if the run came as far as having one
        where = Path(os.path.relpath(path, folder)).as_posix() if path is not None else None
        return {"seed": seed, "path": where, "state": "failed", "why": str(error)}


def _line(seed: int, folder: RunFolder, origin: Path) -> dict[str, Any]:
    path = Path(os.path.relpath(folder.path, origin)).as_posix()
    return {"seed": seed, "path": path, "state": folder.info["state"], "why": folder.info.get("why")}


def _finished(file: Path) -> dict[tuple[str, int], RunFolder]:
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    paths = [file.parent / line["path"] for arm in content["arms"] for line in arm["runs"] if line["path"]]
    folders = readable([path for path in paths if (path / "run.json").is_file()])
    return {(f.info["hash"], f.info["seed"]): f for f in folders if f.info["state"] == "finished"}


def _write(file: Path, plan: Plan, results: Mapping[str, list[dict[str, Any]]]) -> None:
    content = {
        "format": FORMAT,
        "id": plan.id,
        "title": plan.title,
        "question": plan.question,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **plan.compare,
        "base": plan.base,
        "seeds": plan.seeds,
        "groups": plan.groups,
        "arms": [
            {
                "name": arm.name,
                "title": arm.title,
                "recipe": arm.recipe.id,
                "hash": arm.recipe.hash,
                "difference": _difference(plan.arms[0].recipe, arm.recipe),
                "expected": arm.expected and asdict(arm.expected),
                "runs": results[arm.name],
            }
            for arm in plan.arms
        ],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, to_json(content, indent=1) + "\n")


def _combinations(given: StudyFile, where: Path) -> tuple[str, dict[str, Any]]:
    """The name of the base arm, and name -> words of the other arms, of a study with axes."""
    if given.name != "base":
        raise InputError(f"The base arm is called '{given.name}', and the axes name it too.", where=where,
                         expected="'name' or 'axes'")  # fmt: skip
    arms: dict[str, Any] = {}
    for values in itertools.product(*(axis.items() for axis in given.axes.values())):
        changes = [change for _, of_axis in values for change in of_axis.items()]
        if len(dict(changes)) < len(changes):
            raise InputError(f"Two axes set one key: {', '.join(key for key, _ in changes)}.",
                             where=f"{where}, key 'axes'", expected="axes that can be combined")  # fmt: skip
        arms["-".join(str(value) for value, _ in values)] = {"set": dict(changes)}
    base = next((name for name, words in arms.items() if not words["set"]), None)
    if base is None:
        raise InputError("No combination is the base.", where=f"{where}, key 'axes'",
                         expected="in every axis a value that changes nothing, as {}")  # fmt: skip
    del arms[base]
    return base, arms


def _difference(base: Recipe, arm: Recipe) -> dict[str, Any]:
    from anban.recipe import differences

    return {key: new for key, (_, new) in differences(base.config, arm.config).items() if key != "seed"}


def _refuse_twins(arms: list[Arm], where: Path) -> None:
    seen: dict[str, str] = {}
    for arm in arms:
        if arm.name in seen.values():
            raise InputError(f"Two arms are called '{arm.name}'.", where=where)
        if (twin := seen.get(arm.recipe.hash)) is not None:
            raise InputError(f"The arms '{twin}' and '{arm.name}' are the same experiment (hash {arm.recipe.hash}).",
                             where=where, expected="at least one difference in effect",
                             do="remove one, or check that the changed key is used")  # fmt: skip
        seen[arm.recipe.hash] = arm.name


def _check_groups(groups: Mapping[str, list[str]], arms: list[Arm], where: Path) -> None:
    names = [arm.name for arm in arms]
    listed = [name for members in groups.values() for name in members]
    for name in listed:
        if name not in names:
            raise unknown("arm", name, names, f"{where}, key 'groups'")
        if listed.count(name) > 1:
            raise InputError(f"The arm '{name}' is listed twice.", where=f"{where}, key 'groups'")


def _check_expectations(arms: list[Arm], where: Path) -> None:
    names = [arm.name for arm in arms]
    for arm in arms:
        if arm.expected is None:
            continue
        place = f"{where}, key 'arms.{arm.name}.expected.over'"
        if arm.expected.over not in names:
            raise unknown("arm", arm.expected.over, names, place)
        if arm.expected.over == arm.name:
            raise InputError(f"The arm '{arm.name}' is expected to gain over itself.", where=place)


def _as_overrides(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        yield f"{key}={json.dumps(value)}"
