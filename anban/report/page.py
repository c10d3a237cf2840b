"""The report: tables, figures and one self-contained HTML page, written from records only."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from anban.errors import InputError
from anban.record import Ledger, readable
from anban.report import boxwise, figures, sheets
from anban.report.classwise import class_table, confusion_charts, one_class_only
from anban.report.patients import patient_table, slice_table
from anban.report.records import open_study, plain, protocol_text
from anban.report.sheets import Sheet, Tile, sheet_of
from anban.report.tables import (
    UNDEFINED,
    WRITERS,
    Cell,
    Column,
    Row,
    Table,
    ablation_table,
    checkpoints,
    comparison_table,
    correction_text,
    data_sets,
    effects_table,
    efficiency_table,
    expectations_table,
    footnotes,
    gradient_table,
    left_out,
    number,
    p_text,
    seeds_of,
    shown,
    shown_score,
)
from anban.study.effects import Effects, effects
from anban.study.quoted import read_quoted
from anban.study.records import Arm, Run, Study, deciding
from anban.study.scores import score_named
from anban.study.stats import Difference

MOST_ROWS = 200  # of a table on the page; a longer one is in its files alone


def write_report(
    source: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    convention: str | None = None,
    split: str | None = None,
    protocol: str | None = None,
    metric: str | None = None,
    mix_protocols: bool = False,
    with_effects: bool = False,
    quoted: Path | str | None = None,
) -> Path:
    """Writes `out`/report.html, tables/*.{md,tex,csv} and figures/*.{png,pdf}.

    The same records give the same tables, figures and page, byte for byte.

    Args:
        source: a study.json, its folder, or a list of run folders.
        out: the folder to write to; made where it is missing, files of the same names are replaced.
        convention: how right and wrong are coloured in the sheet of pictures, where their kind has several ways.
        split, protocol: what the numbers are measured on; the study's own, or that of the runs' first score, where
            None.
        metric: the score of differences and curves; the study's own where None.
        mix_protocols: allow numbers of different protocols in one table, which then says so.
        with_effects: add what each switch does, over all runs (see `anban.study.effects`).
        quoted: a file of numbers from papers for the comparison (see `anban.study.quoted`).

    Returns:
        The path of report.html.

    Raises:
        InputError: the source is no study, the convention or metric is unknown, protocols are mixed unasked, or the
            file of quoted numbers cannot be used.
    """
    study = open_study(source, split=split, protocol=protocol, metric=metric, mix_protocols=mix_protocols)
    from_papers = read_quoted(quoted) if quoted is not None else []
    sheet = sheet_of(study, convention)
    out = Path(out)

    boxes = boxwise.analyses(study)
    every = [
        comparison_table(study, from_papers),
        ablation_table(study),
        expectations_table(study),
        class_table(study),
        boxwise.class_table(study, boxes),
        boxwise.error_table(study, boxes),
        patient_table(study),
        slice_table(study),
        gradient_table(study),
        efficiency_table(study),
    ]
    tables = [table for table in every if table is not None]
    found = _effects_of(study) if with_effects else []
    of_effects = [effects_table(one, part + 1, len(found)) for part, one in enumerate(found)]
    _write_tables([*tables, *of_effects], out)

    by_class = [*boxwise.charts(study, boxes), *confusion_charts(study)]
    drawn: dict[str, Figure | None] = {
        "curves": figures.curves(study),
        "terms": figures.loss_terms(study),
        "differences": figures.differences(study),
        **{chart.name: chart.figure for chart in by_class},
        "sheet": sheets.draw(sheet) if sheet else None,
    }
    drawn |= {chart.name: chart.figure for chart in sheet.charts} if sheet else {}
    drawn |= {table.name: figures.effects_plot(one) for table, one in zip(of_effects, found, strict=True)}
    page = template("report.html.j2").render(
        study=study,
        score=score_named(study.metric),
        base=study.arm(study.base),
        facts=_facts(study),
        verdicts=verdicts(study),
        correction=correction_text(study),
        cautions=cautions(study),
        tables=[
            _table_view(table, study.base, lambda cell, row: _arm_link(cell, row, study))
            for table in tables
            if len(table.rows) <= MOST_ROWS
        ],
        effects=[_table_view(table) for table in of_effects],
        charts=_write_figures(drawn, out),
        by_class=by_class,
        sheet=sheet,
        scenes=_scene_views(sheet) if sheet else [],
        arms=[_arm_view(study, arm, out) for arm in study.arms],
        anchor=run_anchor,
        protocols=_protocol_views(study),
        data_blocks=_data_views(study),
        environments=_environment_views(study),
    )
    return _write_page(page, out)


def write_effects(
    runs: Path | str,
    out: Path | str,
    *,
    task: str | None = None,
    split: str | None = None,
    protocol: str | None = None,
    metric: str | None = None,
) -> Path:
    """Writes what each switch does over all finished runs of a task: report.html, tables and figures as `write_report`.

    Args:
        runs: the folder of all runs, with their ledger.
        out: the folder to write to.
        task: whose runs; needed where the folder has runs of several tasks.
        split: of the scores; that of the runs' first score where None.
        protocol: of the scores; where None every protocol has a table of its own.
        metric: the score; the one that picked the runs' checkpoints where None.

    Returns:
        The path of report.html.

    Raises:
        InputError: there are no such runs, or the task is not clear.
    """
    rows = Ledger(runs).rows(state="finished", task=task)
    tasks = sorted({str(row["task"]) for row in rows})
    if len(tasks) != 1:
        raise InputError(
            f"There are finished runs of {', '.join(tasks)}." if tasks else "There is no finished run.",
            where=runs,
            expected="finished runs of one task",
            do=f"add --task {tasks[0]}" if tasks else "name the folder given to --out of anban run",
        )
    folders = [Path(runs, row["path"]) for row in rows]
    records = list(readable(folder for folder in folders if (folder / "run.json").is_file()))
    metric = metric or deciding(records)
    if split is None:
        scored = (str(score["split"]) for run in records for score in run.info.get("scores") or [])
        split = next(scored, "test")
    found = effects(records, metric, split=split, protocol=protocol)
    if not found:
        raise InputError(
            f"No finished run has the score {metric!r} on {split!r}"
            + (f" under protocol {protocol!r}." if protocol else "."),
            where=runs,
            do="anban runs show RUN lists the scores of a run",
        )
    out = Path(out)
    tables = [effects_table(one, part + 1, len(found)) for part, one in enumerate(found)]
    _write_tables(tables, out)
    drawn = {table.name: figures.effects_plot(one) for table, one in zip(tables, found, strict=True)}
    page = template("effects.html.j2").render(
        title=f"Effects of switches, {tasks[0]}",
        task=tasks[0],
        score=score_named(metric),
        facts=_effect_facts(found),
        effects=[_table_view(table) for table in tables],
        charts=_write_figures(drawn, out),
        groups=_observation_views(found, out),
    )
    return _write_page(page, out)


def _effects_of(study: Study) -> list[Effects]:
    records = [run.record for _, run in study.finished if run.record is not None]
    base = next((run.recipe for run in study.arm(study.base).finished if run.recipe), None)
    return effects(records, study.metric, split=study.split, protocol=study.protocol, reference=base)


def _write_tables(tables: Sequence[Table], out: Path) -> None:
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for table in tables:
        for suffix, write in WRITERS.items():
            file = out / "tables" / f"{table.name}.{suffix}"
            file.write_text(write(table), encoding="utf-8", errors="backslashreplace", newline="\n")


def _write_figures(drawn: Mapping[str, Figure | None], out: Path) -> dict[str, str]:
    """Saves what was drawn; gives data URIs by name for the page, which shows the sheet's scenes one by one instead."""
    (out / "figures").mkdir(exist_ok=True)
    charts: dict[str, str] = {}
    for name, figure in drawn.items():
        if figure is not None:
            figures.save(figure, out / "figures" / name)
            if name != "sheet":
                charts[name] = _data_uri("image/svg+xml", figures.svg(figure).encode())
    return charts


@cache
def template(name: str) -> Template:
    """A page of that name; what it is filled with is escaped."""
    environment = Environment(
        loader=PackageLoader("anban.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _write_page(text: str, out: Path) -> Path:
    page = out / "report.html"
    page.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    return page


# --- what the study says ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """One arm against the base.

    Attributes:
        kind: "better", "worse", "unclear" or "none".
        text: one plain sentence.
        link: the anchor of the runs behind it.
        note: what weakens the sentence, "" for nothing.
    """

    kind: str
    text: str
    link: str
    note: str = ""


def verdicts(study: Study) -> list[Verdict]:
    """One sentence per arm other than the base, in study order."""
    base = study.arm(study.base).title
    found = []
    for arm in study.arms:
        if arm.name == study.base:
            continue
        result = arm.results.get(study.metric)
        difference = result.difference if result else None
        link = f"#{runs_anchor(arm)}"
        if difference is None or difference.value is None:
            why = difference.note if difference else None
            why = why or (f"no run of {base} is used" if arm.finished else arm.why_empty)
            found.append(Verdict("none", f"{arm.title} cannot be compared with {base}: {why}.", link))
            continue
        kind = difference.verdict if difference.verdict in ("better", "worse") else "unclear"
        note = f"{difference.note[0].upper()}{difference.note[1:]}." if difference.note else ""
        found.append(Verdict(kind, _sentence(arm.title, base, difference, study), link, note))
    return found


def _sentence(title: str, base: str, difference: Difference, study: Study) -> str:
    score = score_named(study.metric)
    points = f"{shown_score(difference.value or 0.0, score, sign=True)} {score.points}"
    if difference.low is None or difference.high is None:
        interval = "no interval"
    else:
        low, high = (shown_score(end, score) for end in (difference.low, difference.high))
        interval = f"95 % interval {low} to {high}"
    if difference.p is not None and difference.p_adjusted is not None and difference.family > 1:
        interval += (
            f", p {p_text(difference.p)}, {p_text(difference.p_adjusted)} corrected for {difference.family}"
        )
    own, of_base = difference.seeds
    seeds = _count(own, "seed") if own == of_base else f"{own} against {of_base} seeds"
    basis = f"({interval}; {_count(difference.images, 'image')}, {seeds})"
    if difference.verdict == "better":
        return f"{title} is better than {base} by {points} {basis}."
    if difference.verdict == "worse":
        return f"{title} is worse than {base}: {points} {basis}."
    return f"{title} cannot be told apart from {base}: {points} {basis}."


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Caution:
    """Something the reader must know before believing a number; `runs` are (id, anchor) pairs."""

    text: str
    runs: tuple[str, ...] = ()


def cautions(study: Study) -> list[Caution]:
    """Runs that did not finish, collapsed predictions, and whatever keeps the runs from being comparable."""
    found = []
    for arm, group in left_out(study):
        text = f"{arm.title}, {seeds_of(group)} ({group[0].state}): {group[0].why or 'no reason recorded.'}"
        found.append(Caution(text, tuple(run.id for run in group if run.has_folder)))
    for arm in study.arms:
        for name, ids in one_class_only(study, arm).items():
            text = f"{arm.title} predicted {name!r} everywhere in {len(ids)} of {_count(len(arm.finished), 'run')}: its scores say nothing about the method."
            found.append(Caution(text, tuple(ids)))
    found += _unequal(study)
    late = [
        (arm, [run.id for run in arm.finished if _best_at_the_end(run, study.metric)]) for arm in study.arms
    ]
    for arm, ids in late:
        if ids:
            text = f"{arm.title} was at its best at the last validation in {len(ids)} of {_count(len(arm.finished), 'run')}: longer training may change its place."
            found.append(Caution(text, tuple(ids)))
    return found


def _unequal(study: Study) -> list[Caution]:
    """One warning for each thing that should be the same for all finished runs and is not."""
    read: dict[str, Callable[[Run], object]] = {
        "data": lambda run: (run.info.get("data") or {}).get("fingerprint"),
        "code (commit)": lambda run: run.info.get("commit"),
        "device": lambda run: run.info.get("device"),
        "torch version": lambda run: (run.info.get("environment") or {}).get("torch"),
        "protocol": lambda run: protocol_text(run.protocol(study.split, study.protocol)),
        "checkpoint": lambda run: run.checkpoint(study.split, study.protocol),
    }
    found = []
    for what, value in read.items():
        values = list(dict.fromkeys(str(value(run)) for _, run in study.finished))
        if len(values) > 1:
            found.append(Caution(f"The runs differ in their {what}: {'; '.join(values)}."))
    dirty = [run.id for _, run in study.finished if "+dirty" in (run.info.get("commit") or "")]
    if dirty:
        everyone = len(dirty) == len(study.finished)
        who = "All runs" if everyone else _count(len(dirty), "run")
        found.append(
            Caution(f"{who} used code with changes that are in no commit.", () if everyone else tuple(dirty))
        )
    told = [text for _, run in study.finished for text in (run.info.get("data") or {}).get("warnings") or []]
    found += [Caution(f"The data: {text}") for text in dict.fromkeys(told)]
    if {len(arm.finished) for arm in study.arms} == {1}:
        found.append(
            Caution("Each arm has one seed: nothing here says how much a new seed would move the numbers.")
        )
    return found


def _best_at_the_end(run: Run, metric: str) -> bool:
    best = ((run.info.get("progress") or {}).get("best") or {}).get("step")
    steps, _ = run.series("val", metric)
    return bool(best is not None and steps.size > 2 and best >= steps[-1])


# --- views: what the template prints ----------------------------------------------------------------------------


def slug(text: str) -> str:
    """A text as an HTML id: letters and digits of any script, - and _ only."""
    return re.sub(r"[^\w-]+", "-", text)


def run_anchor(run_id: str) -> str:
    return f"run-{slug(run_id)}"


def runs_anchor(arm: Arm) -> str:
    return f"runs-{slug(arm.name)}"


def _facts(study: Study) -> list[tuple[str, str]]:
    finished = sum(run.state in ("finished", "unused") for _, run in study.runs)
    unused, total = finished - len(study.finished), len(study.runs)
    seeds = sorted({run.seed for _, run in study.runs})
    return [
        ("Data", "; ".join(data_sets(study, short=True)) or UNDEFINED),
        ("Split", study.split),
        ("Protocol", study.protocol),
        ("Checkpoint", " / ".join(checkpoints(study)) or UNDEFINED),
        ("Metric", score_named(study.metric).heading),
        (
            "Runs",
            f"{_count(len(study.arms), 'arm')}, seeds {', '.join(map(str, seeds))}; {finished} of {total} runs finished"
            + (f", {unused} of them not used" if unused else ""),
        ),
    ]


def _table_view(
    table: Table, base: str = "", link: Callable[[Cell, Row], str] | None = None
) -> dict[str, Any]:
    """A table for the template. `base` is the key of the row to be called so; `link` leads from a cell to its runs."""
    letters = footnotes(table)
    tags = {row.key: "base" if row.key == base else "quoted" if row.quoted else "" for row in table.rows}

    def view(row: Row, column: Column) -> dict[str, Any]:
        cell = row.cells.get(column.key)
        if cell is None:
            return {
                "main": "",
                "spread": "",
                "sort": "",
                "mark": "",
                "note": "",
                "link": "",
                "hint": "",
                "kind": column.kind,
            }
        main, spread = shown(cell, column)
        return {
            "main": main,
            "spread": spread,
            "sort": _sort_value(cell, column),
            "mark": cell.mark or "",
            "note": letters.get(cell.note or "", ""),
            "link": (link or _runs_link)(cell, row),
            "hint": _hint(cell, column),
            "kind": column.kind,
        }

    return {
        "name": table.name,
        "title": table.title,
        "caption": table.caption,
        "columns": table.columns,
        "rows": [
            {
                "key": row.key,
                "tag": tags[row.key],
                "cells": [view(row, column) for column in table.columns],
            }
            for row in table.rows
        ],
        "footnotes": [(letter, text) for text, letter in letters.items()],
        "notes": table.notes,
        "sources": {suffix: write(table) for suffix, write in WRITERS.items()},
        "csv": _data_uri("text/csv;charset=utf-8", WRITERS["csv"](table).encode(errors="backslashreplace")),
    }


def _sort_value(cell: Cell, column: Column) -> str:
    """What the page sorts by: numbers at full precision, text as it is, "" (always last) for undefined."""
    value = cell.low if column.kind == "interval" else cell.value
    if value is None:
        return ""
    if column.kind == "check":
        return "1" if value else "0"
    return repr(value) if isinstance(value, float) else str(value)


def _runs_link(cell: Cell, row: Row) -> str:
    """To the run of a cell, or to the list of all runs."""
    if not cell.runs:
        return ""
    return f"#{run_anchor(cell.runs[0])}" if len(cell.runs) == 1 else "#runs"


def _arm_link(cell: Cell, row: Row, study: Study) -> str:
    """To the run of a cell, or to those of its row's arm; in a row that is no arm's, to the arm that has the runs."""
    if len(cell.runs) < 2:
        return _runs_link(cell, row)
    by_name = (arm for arm in study.arms if arm.name == row.key)
    by_run = (arm for arm, run in study.runs if run.id == cell.runs[0])
    return f"#{runs_anchor(next(by_name, None) or next(by_run))}"


def _hint(cell: Cell, column: Column) -> str:
    """The single values behind a mean, for the cell's tooltip."""
    if len(cell.each) < 2:
        return ""
    values = [
        UNDEFINED if value is None else number(value * column.scale, column.digits) for value in cell.each
    ]
    return f"{len(values)} runs: {', '.join(values)}"


def _scene_views(sheet: Sheet) -> list[dict[str, Any]]:
    return [
        {
            "name": Path(scene.name).stem,
            "lines": [[_tile_view(tile) for tile in line] for line in scene.lines],
        }
        for scene in sheet.scenes
    ]


def _tile_view(tile: Tile) -> dict[str, Any]:
    height, width = tile.pixels.shape[:2]
    return {
        "title": tile.title,
        "uri": _data_uri("image/png", _png(tile.pixels)),
        "recolours": tile.recolours,
        "score": tile.score,
        "link": f"#{run_anchor(tile.run)}" if tile.run else "",
        "height": height,
        "width": width,
    }


def _arm_view(study: Study, arm: Arm, out: Path) -> dict[str, Any]:
    return {
        "title": arm.title,
        "name": arm.name,
        "recipe": arm.recipe,
        "anchor": runs_anchor(arm),
        "is_base": arm.name == study.base,
        "changes": _recipe_changes(study, arm),
        "yaml": next((run.recipe_text for run in arm.runs if run.recipe_text), ""),
        "runs": [_run_view(study, arm, run, out) for run in arm.runs],
    }


def _run_view(study: Study, arm: Arm, run: Run, out: Path) -> dict[str, Any]:
    result = arm.results.get(study.metric)
    values = dict(zip([each.id for each in arm.finished], result.values if result else (), strict=False))
    value = values.get(run.id)
    seconds = run.info.get("seconds")
    return {
        "id": run.id,
        "anchor": run_anchor(run.id) if run.has_folder else "",  # a run without a folder has no id of its own
        "folder": _folder_link(run.path, out),
        "seed": run.seed,
        "state": run.state,
        "why": run.why,
        "score": UNDEFINED if value is None else shown_score(value, score_named(study.metric)),
        "hash": run.info.get("hash") or UNDEFINED,
        "commit": _short_commit(run.info),
        "data": (run.info.get("data") or {}).get("fingerprint") or UNDEFINED,
        "protocol": study.protocol if run.protocol(study.split, study.protocol) else UNDEFINED,
        "checkpoint": run.checkpoint(study.split, study.protocol) or UNDEFINED,
        "device": run.info.get("device") or UNDEFINED,
        "time": UNDEFINED if seconds is None else _duration(seconds),
        "command": run.info.get("command") or UNDEFINED,
    }


def _effect_facts(found: Sequence[Effects]) -> list[tuple[str, str]]:
    return [
        ("Runs", str(len({each.run.id for one in found for each in one.observations}))),
        ("Data", "; ".join(dict.fromkeys(one.alike.data for one in found))),
        ("Split", found[0].alike.split),
        ("Protocol", " / ".join(dict.fromkeys(one.alike.protocol for one in found))),
        ("Metric", score_named(found[0].metric).heading),
    ]


def _observation_views(found: Sequence[Effects], out: Path) -> list[dict[str, Any]]:
    """The runs behind each table of effects; one that is behind several has its anchor in the first."""
    seen: set[str] = set()
    groups = []
    for part, one in enumerate(found):
        runs = []
        for each in one.observations:
            info = each.run.info
            runs.append(
                {
                    "id": each.run.id,
                    "anchor": "" if each.run.id in seen else run_anchor(each.run.id),
                    "folder": _folder_link(each.run.path, out),
                    "seed": info.get("seed"),
                    "score": shown_score(each.score, score_named(one.metric)),
                    "recipe": info["recipe"],
                    "hash": info.get("hash") or UNDEFINED,
                    "commit": _short_commit(info),
                }
            )
            seen.add(each.run.id)
        title = f"Part {part + 1}: {one.alike.data}, protocol {one.alike.protocol}, {len(runs)} runs"
        groups.append({"title": title, "runs": runs})
    return groups


def _folder_link(folder: Path, out: Path) -> str:
    return quote(Path(os.path.relpath(folder.resolve(), out.resolve())).as_posix())


def _short_commit(info: Mapping[str, Any]) -> str:
    commit, plus, dirty = (info.get("commit") or UNDEFINED).partition("+")
    return f"{commit[:10]}{plus}{dirty}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    )


def _recipe_changes(study: Study, arm: Arm) -> list[tuple[str, str, str]]:
    """(dotted key, value in the base, value in this arm) of all that differs in the effective recipes."""
    base = next((run.recipe for run in study.arm(study.base).runs if run.recipe), {})
    own = next((run.recipe for run in arm.runs if run.recipe), {})
    if not base or not own:
        return [(key, UNDEFINED, _yaml(value)) for key, value in arm.switches.items()]
    keys = dict.fromkeys([*base, *own])
    return [
        (key, _yaml(base[key]) if key in base else UNDEFINED, _yaml(own[key]) if key in own else UNDEFINED)
        for key in keys
        if base.get(key, UNDEFINED) != own.get(key, UNDEFINED)
    ]


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.replace("\n...", "").strip()


def _protocol_views(study: Study) -> list[dict[str, Any]]:
    """Each distinct protocol stamp as (field, value) pairs with the runs that carry it."""
    stamps: dict[str, list[str]] = {}
    for _, run in study.finished:
        stamps.setdefault(json.dumps(run.protocol(study.split, study.protocol)), []).append(run.id)
    views = []
    for stamp, runs in stamps.items():
        fields = [(key.replace("_", " "), plain(value)) for key, value in json.loads(stamp).items()]
        views.append({"fields": fields, "runs": runs})
    return views


def _data_views(study: Study) -> list[list[tuple[str, str]]]:
    """Each distinct data block of run.json as (field, value) pairs; of the place only the folder's name."""
    found: dict[str, list[tuple[str, str]]] = {}
    for _, run in study.runs:
        block = run.info.get("data") or {}
        if block:
            splits = ", ".join(f"{count} {name}" for name, count in (block.get("splits") or {}).items())
            fields = {**block, "root": Path(str(block.get("root"))).name, "splits": splits}
            found.setdefault(
                json.dumps(fields), [(key, plain(value)) for key, value in fields.items() if value]
            )
    return list(found.values())


def _environment_views(study: Study) -> list[dict[str, Any]]:
    """Each distinct environment as (field, value) pairs with the number of runs made in it."""
    found: dict[str, int] = {}
    for _, run in study.runs:
        if run.info:
            block = dict(run.info.get("environment") or {})
            packages = block.pop("packages", {}) or {}
            fields = {**block, "device": run.info.get("device"), "host": run.info.get("host")}
            fields["packages"] = dict(sorted(packages.items()))
            text = json.dumps({key: plain(value) for key, value in fields.items() if value})
            found[text] = found.get(text, 0) + 1
    return [{"fields": list(json.loads(text).items()), "runs": count} for text, count in found.items()]


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Lossless PNG; pictures of few colours (maps, labels) as palettes, which are a tenth of the size."""
    image = Image.fromarray(pixels)
    if len(image.getcolors(maxcolors=pixels.shape[0] * pixels.shape[1]) or []) <= 16:
        image = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
