"""Studies and their runs as the record folders hold them: what is compared, tabled and drawn.

Everything here is read only and comes from files; nothing needs torch, a GPU or the data set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anban.errors import InputError
from anban.metrics import defined
from anban.metrics.detection import Detected
from anban.metrics.ranked import RANKED_SCORES, Rankings
from anban.recipe import flatten
from anban.recipe.recipe import DESCRIPTION, NOT_THE_EXPERIMENT
from anban.recipe.yamlfile import read
from anban.record import RunFolder, deciding_score, readable
from anban.record.shapes import EACH, NUMBER, Maybe, Shape, from_json, misfit
from anban.study.scores import COUNTED, counted_in
from anban.study.stats import Difference, Floats
from anban.study.study import FORMAT as STUDY_FORMAT

STUDY_FILE = "study.json"
# What readers of study.json count on.
SHAPE: dict[str, Shape] = {
    **dict.fromkeys(("id", "split", "protocol", "base"), str),
    **dict.fromkeys(("title", "question", "metric"), Maybe(str)),
    "arms": [
        {
            "name": str,
            "title": Maybe(str),
            "recipe": str,
            "difference": Maybe(dict),
            "runs": [
                {"seed": int, "path": Maybe(str), "state": Maybe(str), "why": Maybe(str)},
            ],
            "expected": Maybe({"gain": NUMBER, "over": str, "source": Maybe(str)}),
        }
    ],
    "groups": Maybe({EACH: [str]}),
}
# What readers of index.json count on; what else it holds is its view's business.
PICTURES: Shape = {"view": Maybe(str), "samples": Maybe([{"name": str, "folder": str}])}
FOLDER = re.compile(r"(?!\.\.?$)[^/\\:\0]{1,255}")
ENDED_EARLY = ("failed", "interrupted")
# Keys of a recipe that name it, or say how a machine runs it, and change nothing about the experiment.
DESCRIBING = frozenset({*DESCRIPTION, *NOT_THE_EXPERIMENT})


@dataclass(frozen=True)
class _Evaluated:
    """Scores, patients and boxes by image name, and the sum of the per-image matrices (K, K) where there are any."""

    scores: dict[str, dict[str, float | None]]
    patients: dict[str, str]
    boxes: dict[str, Detected]
    matrix: Floats | None

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]], file: Path) -> _Evaluated:
        scores: dict[str, dict[str, float | None]] = {}
        patients: dict[str, str] = {}
        boxes: dict[str, Detected] = {}
        total: Floats | None = None
        for line in lines:
            scores[line["name"]] = line.get("scores") or {}
            if line.get("patient") is not None:
                patients[line["name"]] = line["patient"]
            with usable(line, file):
                if "found" in line:
                    boxes[line["name"]] = Detected.of(line["truth"], line["found"])
                key = counted_in(line)
                if key is not None and (as_matrix := COUNTED[key].matrix) is not None:
                    matrix = as_matrix(line)
                    total = matrix if total is None else total + matrix
        return cls(scores, patients, boxes, total)


@contextmanager
def usable(line: Mapping[str, Any], file: Path) -> Iterator[None]:
    """What inside cannot be counted becomes an InputError that names the image of the line of that file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, IndexError) as error:
        raise InputError(
            f"What was counted in {line['name']!r} cannot be used: {type(error).__name__} {error}.",
            where=file,
            do="evaluate the run again with anban eval",
        ) from None


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        state: that of its run.json, "missing" without one, and "unused" where a comparison leaves a finished run out;
            `why` is the reason.
        record: what the folder holds; None where it never came to be or its run.json cannot be read.
    """

    path: Path
    seed: int
    state: str
    why: str | None = None
    record: RunFolder | None = field(default=None, repr=False)

    @cached_property
    def info(self) -> dict[str, Any]:
        """run.json, {} without a record."""
        return self.record.info if self.record else {}

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        return self.record.metrics() if self.record else []

    @cached_property
    def has_folder(self) -> bool:
        return (self.path / "run.json").is_file()

    @property
    def id(self) -> str:
        return str(
            self.info.get("id") or (self.path.name if self.has_folder else f"no folder, seed {self.seed}")
        )

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def parameters(self) -> int | None:
        """Of its network; None where it was not recorded."""
        return (self.info.get("model") or {}).get("parameters")

    def protocol(self, split: str, name: str) -> dict[str, Any]:
        """The stamp that run.json stores for this split and protocol, {} where there is none."""
        return (self.record.stamp(split, name) if self.record else None) or {}

    def checkpoint(self, split: str, protocol: str) -> str | None:
        """The checkpoint whose scores are reported."""
        return self.record.scored_checkpoint(split, protocol) if self.record else None

    def matrix(self, split: str, protocol: str) -> Floats | None:
        """How often each label got each prediction, (K, K), over all images; None where the lines count no such thing."""
        return self._evaluated(split, protocol).matrix

    def boxes(self, split: str, protocol: str) -> dict[str, Detected]:
        """The objects and boxes of each image by its name; {} where the lines hold none."""
        return self._evaluated(split, protocol).boxes

    def image_score(self, split: str, protocol: str, image: str, name: str) -> float | None:
        """The score `name` of `image` alone, None where it is undefined or was not recorded."""
        evaluated = self._evaluated(split, protocol)
        if name in RANKED_SCORES and image in evaluated.boxes:
            return defined(float(Rankings([evaluated.boxes[image]]).score(name, np.ones((1, 1)))[0]))
        return evaluated.scores.get(image, {}).get(name)

    def patients(self, split: str, protocol: str) -> dict[str, str]:
        """The patient of each image by its name ("" where it is not known); {} where the lines name none."""
        return self._evaluated(split, protocol).patients

    def _evaluated(self, split: str, protocol: str) -> _Evaluated:
        """What the per-image lines of the checkpoint that is reported say."""
        if (split, protocol) not in self._read:
            checkpoint = self.checkpoint(split, protocol)
            lines = self.record.samples(split, protocol, checkpoint) if self.record else []
            self._read[split, protocol] = _Evaluated.of(lines, self.path / "samples.jsonl")
        return self._read[split, protocol]

    @cached_property
    def _read(self) -> dict[tuple[str, str], _Evaluated]:
        return {}

    def series(self, split: str, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """A recorded curve, of any protocol: steps (N,) ascending and values (N,), undefined as NaN."""
        points = {
            line["step"]: line["value"]
            for line in self.metrics
            if (line["split"], line["name"]) == (split, name)
        }
        steps = sorted(points)
        values = [np.nan if points[step] is None else points[step] for step in steps]
        return np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)

    @cached_property
    def recipe_text(self) -> str:
        """recipe.yaml as it stands, "" where it is missing."""
        path = self.path / "recipe.yaml"
        return path.read_text(encoding="utf-8") if self.info and path.is_file() else ""

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What the effective recipe sets, as a flat dict of dotted keys; {} where recipe.yaml is missing."""
        return experiment(self.record) if self.record else {}

    @cached_property
    def pictured(self) -> dict[str, Any]:
        """index.json of the stored pictures, {} where there are none.

        Raises:
            InputError: it is no such file, or names a folder elsewhere.
        """
        if not self.info or not self.picture_index.is_file():
            return {}
        try:
            index = from_json(self.picture_index.read_text(encoding="utf-8"))
            if (wrong := misfit(index, PICTURES)) is not None:
                raise ValueError(f"it has no usable value under {wrong or 'its top level'}")
            for each in index.get("samples") or []:
                if not FOLDER.fullmatch(each["folder"]):
                    raise ValueError(f"{each['folder']!r} is no folder beside it")
        except (OSError, ValueError) as error:
            raise InputError(
                f"The index of the pictures cannot be used: {error}.",
                where=self.picture_index,
                do="evaluate the run again with anban eval, or remove figures/samples",
            ) from None
        return dict(index)

    @property
    def picture_index(self) -> Path:
        """Where the stored pictures are listed."""
        return self.path / "figures" / "samples" / "index.json"

    @cached_property
    def pictures(self) -> dict[str, Path]:
        """Scene name -> folder with its pictures, in the recorded order."""
        folder = self.picture_index.parent
        return {each["name"]: folder / each["folder"] for each in self.pictured.get("samples") or []}


@dataclass(frozen=True)
class Result:
    """One score of one arm: values in run order, mean and sample standard deviation (None where undefined)."""

    values: tuple[float | None, ...]
    mean: float | None
    std: float | None
    difference: Difference | None = None


@dataclass(frozen=True)
class Expectation:
    """What somebody expected of an arm.

    Attributes:
        gain: over the arm `over`, in the study's score as it is shown (points, for a share).
        source: where the expectation comes from.
        difference: what was measured.
    """

    gain: float
    over: str
    source: str = ""
    difference: Difference | None = None


@dataclass(frozen=True)
class Arm:
    """One method or variant of the study with its runs in seed order and its results by score name."""

    name: str
    title: str
    recipe: str
    difference: dict[str, Any]
    runs: tuple[Run, ...]
    results: dict[str, Result] = field(default_factory=dict)
    expected: Expectation | None = None

    @property
    def finished(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.finished)

    @property
    def why_empty(self) -> str:
        """Why no run of the arm is used, as words after "because": finished runs may not be evaluated as asked."""
        unused = dict.fromkeys(run.why for run in self.runs if run.state == "unused" and run.why)
        return "; ".join(unused) if unused else "none of its runs finished"

    @cached_property
    def root(self) -> str:
        """The complete recipe this arm stands on: its recipe's base where the recipe is itself a difference."""
        return next((str(run.info["base"]) for run in self.runs if run.info.get("base")), self.recipe)

    @cached_property
    def switches(self) -> dict[str, Any]:
        """Dotted key -> value of everything this arm changes from its root."""
        recorded: dict[str, Any] = next(
            (run.info["difference"] for run in self.runs if run.info.get("difference")), {}
        )
        return without_description({**recorded, **self.difference})


@dataclass(frozen=True)
class Study:
    """One question, its arms and their results.

    Attributes:
        split, protocol, metric: what the verdicts go by.
        base: name of the arm that the others are compared with.
        mixed: what is not alike in the runs (protocol, data, images) where mixing was asked for, as texts.
        groups: group -> names of its arms, both in the order of tables.
        counted: what the runs' lines count, a key of COUNTED; None for per-image scores alone.
    """

    id: str
    title: str
    question: str
    split: str
    protocol: str
    metric: str
    base: str
    arms: tuple[Arm, ...]
    mixed: tuple[str, ...] = ()
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    counted: str | None = None

    @property
    def rows(self) -> list[tuple[str, Arm]]:
        """Every arm with its group ("" for none) in the order of tables: by groups, then those in none."""
        group_of = {name: group for group, names in self.groups.items() for name in names}
        order = [*group_of, *(arm.name for arm in self.arms if arm.name not in group_of)]
        return [(group_of.get(name, ""), self.arm(name)) for name in order]

    @property
    def runs(self) -> list[tuple[Arm, Run]]:
        return [(arm, run) for arm in self.arms for run in arm.runs]

    @property
    def finished(self) -> list[tuple[Arm, Run]]:
        return [(arm, run) for arm, run in self.runs if run.finished]

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)


def load_study(path: Path | str) -> Study:
    """The study in a folder with study.json, or in that file, with its run folders as they are now.

    A run folder that is not there, or cannot be read, becomes a run of state "missing" with the reason.
    Raises InputError where study.json itself cannot be used.
    """
    file = Path(path)
    file = file / STUDY_FILE if file.is_dir() else file
    try:
        info = from_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            "This is no study: it has no study.json.", where=path, expected="a folder made by anban study"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"The study's record cannot be read: {error}.", where=file) from error
    found = info.get("format") if isinstance(info, dict) else None
    if found != STUDY_FORMAT:
        raise InputError(f"The study's record has format {found!r}.", where=file, expected=STUDY_FORMAT)
    if wrong := misfit(info, SHAPE):
        raise InputError(
            f"The study's record is incomplete: it has no usable value under {wrong}.",
            where=file,
            expected=STUDY_FORMAT,
        )
    arms = [
        Arm(
            name=arm["name"],
            title=arm.get("title") or arm["name"],
            recipe=arm["recipe"],
            difference=arm.get("difference") or {},
            runs=_by_seed(_run_of(file.parent, run) for run in arm["runs"]),
            expected=_expectation(arm.get("expected")),
        )
        for arm in info["arms"]
    ]
    study = Study(
        id=info["id"],
        title=info.get("title") or info["id"],
        question=info.get("question") or "",
        split=info["split"],
        protocol=info["protocol"],
        metric=info.get("metric") or deciding(run.record for arm in arms for run in arm.runs if run.record),
        base=info["base"],
        arms=tuple(arms),
        groups=info.get("groups") or {},
    )
    _check(study, file)
    return study


def runs_as_study(
    paths: Sequence[Path | str],
    *,
    split: str | None = None,
    protocol: str | None = None,
    metric: str | None = None,
) -> Study:
    """Plain run folders as a study: runs of one effective configuration (hash) are an arm.

    The base is the arm whose recipe the others name as theirs, else the arm of the first path. A run whose record is
    damaged is passed over with a warning.

    Args:
        split, protocol: None takes those of the first score (that fits the other one, if given) of the first run that
            has one, a finished one if possible.
        metric: None takes the score that picked the checkpoints.

    Raises InputError for a path that is no run folder, and when there is no readable one.
    """
    records = list(readable(paths))
    if not records:
        raise InputError("no run to report", expected="at least one readable run folder")
    groups: dict[str, list[RunFolder]] = {}
    for record in records:
        # A record without a hash is like no other.
        groups.setdefault(str(record.info.get("hash") or record.path), []).append(record)
    arms: list[Arm] = []
    for key, group in groups.items():
        info = group[0].info
        name = str(info["recipe"])
        if any(arm.name == name for arm in arms):
            name = f"{name} ({key})"  # the same recipe with values from the command line
        arms.append(
            Arm(
                name=name,
                title=_unused(str(info.get("title") or name), key, arms),
                recipe=str(info["recipe"]),
                difference=dict(info.get("difference") or {}),
                runs=_by_seed(_as_run(record) for record in group),
            )
        )
    named = [record.info.get("base") for record in records]
    base = next((arm for arm in arms if arm.recipe in named), arms[0])
    finished = [record for record in records if record.state == "finished"]
    evaluated = (
        (str(score["split"]), str(score["protocol"]))
        for record in [*finished, *records]
        for score in record.info.get("scores") or []
        if split in (None, score["split"]) and protocol in (None, score["protocol"])
    )
    found = next(evaluated, ("", ""))
    return Study(
        id="runs",
        title=" and ".join(arm.title for arm in arms) if len(arms) < 3 else f"{len(arms)} configurations",
        question="",
        split=split or found[0],
        protocol=protocol or found[1],
        metric=metric or deciding([*finished, *records]),
        base=base.name,
        arms=tuple(arms),
    )


def deciding(runs: Iterable[RunFolder]) -> str:
    """The score that picks the runs' checkpoints, as the first one says that does; else the first score of all, "" for none."""
    infos = [run.info for run in runs]
    named = (str(name) for info in infos if (name := deciding_score(info)))
    scored = (str(score["name"]) for info in infos for score in info.get("scores") or [])
    return next(named, None) or next(scored, "")


def experiment(run: RunFolder) -> dict[str, Any]:
    """What the run's effective recipe sets, by dotted key, without what only describes it; {} where there is none."""
    if not run.recipe_file.is_file():
        return {}
    return without_description(dict(flatten(read(run.recipe_file))))


def without_description(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys and values without those that change nothing about the experiment."""
    return {key: value for key, value in flat.items() if key.split(".")[0] not in DESCRIBING}


def _expectation(words: Mapping[str, Any] | None) -> Expectation | None:
    return Expectation(words["gain"], words["over"], words.get("source") or "") if words else None


def _run_of(folder: Path, entry: Mapping[str, Any]) -> Run:
    """A run as study.json names it, with what its own folder says: the run may have gone on since."""
    path, seed = entry.get("path"), entry["seed"]
    if path is None:
        return Run(folder, seed, entry.get("state") or "missing", entry.get("why") or "it was never started")
    try:
        place = (folder / path).resolve()
        (place / "run.json").is_file()
    except (OSError, ValueError) as error:
        raise InputError(
            f"The study names a folder that cannot be one, {path[:80]!r}: {error}.", where=folder / STUDY_FILE
        ) from None
    try:
        run = _as_run(RunFolder.open(place), seed)
    except InputError as error:
        state = entry.get("state") if entry.get("state") in ENDED_EARLY else "missing"
        return Run(folder / path, seed, str(state), entry.get("why") or error.what)
    if run.state == "lost" and entry.get("state") in ENDED_EARLY:  # the run's disk did not take its end
        return replace(run, state=entry["state"], why=entry.get("why"))
    return run


def _as_run(record: RunFolder, seed: int | None = None) -> Run:
    seed = int(record.info.get("seed") or 0) if seed is None else seed
    return Run(record.path, seed, record.state, record.info.get("why"), record)


def _by_seed(runs: Iterable[Run]) -> tuple[Run, ...]:
    return tuple(sorted(runs, key=lambda run: run.seed))


def _unused(title: str, key: str, arms: Sequence[Arm]) -> str:
    return f"{title} ({key})" if any(arm.title == title for arm in arms) else title


def _check(study: Study, file: Path) -> None:
    names = [arm.name for arm in study.arms]
    if len(set(names)) != len(names):
        raise InputError("two arms have the same name", where=file, expected="a name for each")
    if study.base not in names:
        raise InputError(f"the base {study.base!r} is no arm", where=file, expected=", ".join(names))
    for arm in study.arms:
        if arm.expected and arm.expected.over not in names:
            raise InputError(f"something is expected over {arm.expected.over!r}, which is no arm", where=file)
    listed = [name for group in study.groups.values() for name in group]
    if not set(listed) <= set(names):
        raise InputError(f"the groups name what is no arm: {', '.join(listed)}", where=file)
