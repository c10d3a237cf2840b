"""anban runs: list, watch, show, remark on and compare runs, and fill the ledger again from the run folders."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anban.cli.show import as_json as print_json
from anban.cli.show import as_score
from anban.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from anban.record import RunFolder

app = typer.Typer(help="List, watch, show, remark on and compare runs.", no_args_is_help=False)

SCREENFUL = 50  # rows of a list on a terminal, unless --limit says otherwise

Out = Annotated[
    Path | None, typer.Option("--out", help="Folder of all runs (default: runs).", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Recipe = Annotated[str | None, typer.Option(help="Only this recipe; a pattern such as 'change/*' works.")]
Limit = Annotated[int | None, typer.Option(min=0, help="At most so many, newest first; 0 for all.")]
STATES = ("planned", "queued", "running", "finished", "failed", "interrupted", "lost", "superseded")
State = Annotated[str | None, typer.Option(help=f"Only runs of this state: {', '.join(STATES)}.")]


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    recipe: Recipe = None,
    state: State = None,
    limit: Limit = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """List, show, remark on and compare runs. Without a further word: list."""
    context.obj = (out, as_json)
    if context.invoked_subcommand is None:
        print_list(_folder(out), recipe=recipe, state=state, limit=limit, as_json=as_json)


@app.command("list")
def list_command(
    context: typer.Context,
    recipe: Recipe = None,
    state: State = None,
    limit: Limit = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """All runs, newest first: also those that wait, failed, were interrupted, or were lost with their process."""
    out, as_json = _common(context, out, as_json)
    print_list(_folder(out), recipe=recipe, state=state, limit=limit, as_json=as_json)


@app.command("show")
def show_command(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="Id, beginning of an id, or folder of a run.")],
    out: Out = None,
    as_json: Json = False,
) -> None:
    """All that is recorded of one run, and its latest numbers."""
    out, as_json = _common(context, out, as_json)
    print_run(_folder(out), run, as_json=as_json)


@app.command("remark")
def remark_command(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="Id, beginning of an id, or folder of a run.")],
    text: Annotated[str, typer.Argument(help="The new remark; an empty one takes the old away.")],
    out: Out = None,
) -> None:
    """Change the word on a run that its record keeps: on which machine, when, what to look at."""
    out, _ = _common(context, out, False)
    _open(_folder(out), run).update(remark=text or None)


@app.command("compare")
def compare_command(
    context: typer.Context,
    runs: Annotated[list[str], typer.Argument(help="Two or more runs.")],
    mix: Annotated[bool, typer.Option("--mix", help="Compare although a protocol differs; says so.")] = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Scores side by side, each with its protocol, and what differs between the effective recipes."""
    out, as_json = _common(context, out, as_json)
    print_comparison(_folder(out), runs, mix=mix, as_json=as_json)


@app.command("rebuild")
def rebuild_command(context: typer.Context, out: Out = None, as_json: Json = False) -> None:
    """Fill the ledger again from the run folders."""
    out, as_json = _common(context, out, as_json)
    print_rebuild(_folder(out), as_json=as_json)


@app.command("watch")
def watch_command(
    context: typer.Context,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Where the runs stand that wait or run, again and again until Ctrl-C; once where the output is no terminal."""
    out, as_json = _common(context, out, as_json)
    watch(_folder(out), every=every, as_json=as_json)


def print_list(
    out: Path,
    *,
    recipe: str | None = None,
    state: str | None = None,
    limit: int | None = None,
    as_json: bool = False,
) -> None:
    """Print the runs of folder `out`, newest first, a row each."""
    from anban.record import Ledger

    if state is not None and state not in STATES:
        raise InputError(f"There is no state {state!r}.", where="--state", expected=", ".join(STATES))
    shown = limit or None
    if limit is None and sys.stdout.isatty() and not as_json:
        shown = SCREENFUL
    # One more than is shown tells whether there are more.
    rows = Ledger(out).rows(recipe=recipe, state=state, limit=shown and shown + 1)
    more = shown is not None and len(rows) > shown
    rows = rows[:shown]
    if as_json:
        print_json(rows)
        return
    if not rows:
        print(f"no runs in {out}", file=sys.stderr)
        return
    heads = (
        "id",
        "recipe",
        "state",
        "outcome",
        "seed",
        "started",
        "seconds",
        "result",
        "of",
        "why",
        "job",
        "remark",
    )
    _print_table(
        heads,
        [
            (
                row["id"],
                row["recipe"],
                row["state"],
                _text(row["outcome"]),
                _text(row["seed"]),
                _text(row["started"])[:19].replace("T", " "),
                "-" if row["seconds"] is None else f"{row['seconds']:.0f}",
                _text(row["result"]),
                _text(row["result_of"]),
                _short(row["why"] or row["cause"] or "", 60),
                row["job"] or "",
                _short(row["remark"] or "", 60),
            )
            for row in rows
        ],
        right=(4, 6, 7),
    )
    if more and limit is None:
        print(f"the newest {len(rows)}; --limit 0 shows all", file=sys.stderr)


def print_run(out: Path, name: str, *, as_json: bool = False) -> None:
    """Print what is recorded of one run and the last value of each of its numbers."""
    from anban.recipe import flatten
    from anban.record import Ledger

    run = _open(out, name)
    row = next(iter(Ledger(out).rows(id=run.id)), None)
    state = {"state": run.state}
    if row is not None and row["state"] == "superseded":
        state = {"state": "superseded", "superseded_by": row["superseded_by"]}
    last = {(line["split"], line["protocol"], line["name"]): line for line in run.metrics(dedupe=False)}
    if as_json:
        print_json({**run.info, **state, "path": str(run.path), "metrics": list(last.values())})
        return
    info = {key: value for key, value in run.info.items() if key not in ("scores", "findings")}
    flat = dict(flatten({"path": str(run.path), **info, **state}))
    width = max(map(len, flat))
    for key, value in flat.items():
        print(f"{key:<{width}}  {_text(value)}")
    for finding in run.info.get("findings") or []:
        ended = f", until step {finding['ended']}" if finding.get("ended") is not None else ""
        print(f"\n{finding['kind']} since step {finding['step']}{ended}: {finding['what']}")
        print(f"  cause: {finding['cause']}\n  remedy: {finding['remedy']}")
    scores = run.info.get("scores") or []
    if scores:
        print("\nscores")
        keys = ("split", "protocol", "checkpoint", "name", "value")
        _print_table(keys, [tuple(_text(score.get(key)) for key in keys) for score in scores], right=(4,))
    if last:
        print("\nlatest numbers")
        heads = ("split", "protocol", "name", "value", "step", "epoch")
        rows = [tuple(_text(line[head]) for head in heads) for line in last.values()]
        _print_table(heads, rows, right=(3, 4, 5))


def print_comparison(out: Path, names: Sequence[str], *, mix: bool = False, as_json: bool = False) -> None:
    """Print the scores of several runs side by side and the differences of their effective recipes.

    Raises:
        InputError: fewer than two runs; or a protocol of one name means different things and `mix` is off.
    """
    if len(names) < 2:
        raise InputError("A comparison needs two runs.", where="anban runs compare", do="name another run")
    runs = [_open(out, name) for name in names]
    ids = [run.id for run in runs]
    if len(set(ids)) < len(ids):
        raise InputError("A run is named twice.", where="anban runs compare", expected="different runs")
    mixed = _protocol_differences(runs)
    if mixed and not mix:
        raise InputError(
            f"These runs were not measured alike: {'; '.join(_stated(item, ids) for item in mixed)}.",
            where=", ".join(ids),
            expected="the same protocol under the same name",
            do="evaluate them alike with anban eval, or give --mix to compare all the same",
        )
    scores = _side_by_side([_scores(run) for run in runs])
    recipes = [_recipe(run) for run in runs]
    differences = {
        key: values
        for key, values in _side_by_side(recipes).items()
        if any(
            value != values[0] or (key in recipe) != (key in recipes[0])
            for value, recipe in zip(values, recipes, strict=True)
        )
    }
    data = [(run.info.get("data") or {}).get("fingerprint") for run in runs]
    if as_json:
        keys = ("split", "protocol", "checkpoint", "name")
        print_json(
            {
                "runs": ids,
                "protocols": {
                    name: stamp for run in runs for name, stamp in (run.info.get("protocols") or {}).items()
                }
                if not mixed
                else None,
                "mixed": [{"protocol": name, "key": key, "values": values} for name, key, values in mixed],
                "data": data,
                "scores": [
                    {**dict(zip(keys, key, strict=True)), "values": values} for key, values in scores.items()
                ],
                "recipe": [{"key": key, "values": values} for key, values in differences.items()],
            }
        )
        return
    for item in mixed:
        print(f"CAUTION, protocols mixed: {_stated(item, ids)}")
    if len(set(data)) > 1:
        print(
            f"CAUTION, the data differ: {', '.join(f'{_text(x)} ({i})' for x, i in zip(data, ids, strict=True))}"
        )
    if scores:
        _print_table(
            ("split", "protocol", "checkpoint", "score", *ids),
            [(*key, *map(_text, values)) for key, values in scores.items()],
            right=range(4, 4 + len(ids)),
        )
        for name, stamp in {
            n: s for run in runs for n, s in (run.info.get("protocols") or {}).items()
        }.items():
            if not any(name == item[0] for item in mixed):
                print(
                    f"{name}: {', '.join(f'{key} {_text(value)}' for key, value in stamp.items() if key != 'name')}"
                )
    else:
        print("none of these runs has scores")
    print()
    for run, recipe in zip(runs, recipes, strict=True):
        if not recipe:
            print(f"{run.id} has no recipe.yaml")
    if differences:
        _print_table(("recipe", *ids), [(key, *map(_text, values)) for key, values in differences.items()])
    else:
        print("the effective recipes are the same")


def print_rebuild(out: Path, *, as_json: bool = False) -> None:
    """Fill the ledger of folder `out` again and print how many runs it has."""
    from anban.record import Ledger

    ledger = Ledger(out)
    count = ledger.rebuild()
    if as_json:
        print_json({"ledger": str(ledger.path), "rows": count})
    else:
        print(f"{count} run{'' if count == 1 else 's'} in {ledger.path}")


def watch(out: Path, *, every: float = 5.0, as_json: bool = False) -> None:
    """Print the runs of folder `out` that are running or queued; on a terminal a table that is renewed until Ctrl-C."""
    if as_json:
        print_json(_unfinished(out))
    elif not sys.stdout.isatty():
        if rows := _unfinished(out):
            _print_table(STANDING, [_standing_cells(row) for row in rows], right=(3, 5, 6))
        else:
            print(f"nothing runs or waits in {out}", file=sys.stderr)
    else:
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            while True:
                cells = [_standing_cells(row) for row in _unfinished(out)]
                table = _rich_table(STANDING, cells, right=(3, 5, 6), caption=f"{len(cells)} in {out}")
                live.update(table, refresh=True)
                time.sleep(every)


# --- parts ------------------------------------------------------------------------------------------------------------


def _common(context: typer.Context, out: Path | None, as_json: bool) -> tuple[Path | None, bool]:
    """Options may stand before or after the further word: `anban runs --out X list` and `anban runs list --out X`."""
    outer_out, outer_json = context.obj or (None, False)
    return out or outer_out, as_json or outer_json


def _folder(out: Path | None) -> Path:
    if out is not None and not out.is_dir():
        raise InputError(
            "There is no such folder of runs.", where=out, do="name the folder given to --out of anban run"
        )
    return out or Path("runs")


def _open(out: Path, name: str) -> RunFolder:
    from anban.record import Ledger, RunFolder

    return RunFolder.open(Ledger(out).find(name))


def _unfinished(out: Path) -> list[dict[str, Any]]:
    """Where each run stands whose row says that it runs or is queued."""
    from anban.record import Ledger, readable, standing

    ledger = Ledger(out)
    rows = [row for state in ("running", "queued") for row in ledger.rows(state=state)]
    folders = [out / row["path"] for row in rows]
    return [
        standing(run) for run in readable(folder for folder in folders if (folder / "run.json").is_file())
    ]


STANDING = ("id", "recipe", "state", "step", "best", "s/step", "left", "host", "finding")


def _standing_cells(row: dict[str, Any]) -> tuple[str, ...]:
    best, pace, left = row["best"] or {}, row["seconds_per_step"], row["seconds_left"]
    return (
        row["id"],
        row["recipe"],
        row["state"],
        f"{_text(row['step'])}/{_text(row['steps'])}",
        f"{best.get('name')} {as_score(str(best.get('name')), best.get('value'))}" if best else "-",
        "-" if pace is None else f"{pace:.3g}",
        "-" if left is None else str(timedelta(seconds=round(left))),
        row["host"] or "-",
        _short(row["finding"] or "", 60),
    )


def _scores(run: RunFolder) -> dict[tuple[str, ...], Any]:
    return {
        tuple(_text(score.get(key)) for key in ("split", "protocol", "checkpoint", "name")): score.get(
            "value"
        )
        for score in run.info.get("scores") or []
    }


def _recipe(run: RunFolder) -> dict[str, Any]:
    """The run's effective recipe with dotted keys; empty when it was lost before recipe.yaml was written."""
    from anban.recipe import flatten
    from anban.recipe.yamlfile import read

    return dict(flatten(read(run.recipe_file))) if run.recipe_file.is_file() else {}


def _side_by_side(columns: Sequence[dict[Any, Any]]) -> dict[Any, list[Any]]:
    """Key -> its value in each column (None where it has none), keys in order of first appearance."""
    keys = dict.fromkeys(key for column in columns for key in column)
    return {key: [column.get(key) for column in columns] for key in keys}


def _protocol_differences(runs: Sequence[RunFolder]) -> list[tuple[str, str, list[Any]]]:
    """(split/protocol, key, value per run) wherever runs that have this protocol do not mean the same by it."""
    from anban.recipe import flatten

    protocols = [run.info.get("protocols") or {} for run in runs]
    found = []
    for name in dict.fromkeys(name for stamps in protocols for name in stamps):
        stamps = [stamps.get(name) for stamps in protocols]
        present = [dict(flatten(stamp)) for stamp in stamps if stamp is not None]
        for key in dict.fromkeys(key for stamp in present for key in stamp):
            if any(stamp.get(key) != present[0].get(key) for stamp in present):
                found.append((name, key, [stamp and dict(flatten(stamp)).get(key) for stamp in stamps]))
    return found


def _stated(item: tuple[str, str, list[Any]], ids: Sequence[str]) -> str:
    name, key, values = item
    return f"{name} has {key} " + ", ".join(
        f"{_text(value)} ({run})" for value, run in zip(values, ids, strict=True)
    )


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(text: str, length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _rich_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    caption: str | None = None,
) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", caption=caption, caption_justify="left")
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as Text, brackets in a message are not taken for markup
    return table


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """A Rich table on a terminal; elsewhere aligned plain text that can be cut and searched."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(_rich_table(heads, rows, right=right))
        return
    widths = [max(len(row[index]) for row in [heads, *rows]) for index in range(len(heads))]
    align: list[Callable[[str, int], str]] = [
        str.rjust if i in right else str.ljust for i in range(len(heads))
    ]
    for row in [heads, *rows]:
        print(
            "  ".join(fit(cell, width) for fit, cell, width in zip(align, row, widths, strict=True)).rstrip()
        )
