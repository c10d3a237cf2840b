"""`anban data`: the table that describes the data sets of a paper, and a page to look through one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from anban.report.tables import Table


def data(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]DATA...", help="data folders; the table calls each by its name, or by NAME"
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder for data.md, data.tex and data.csv")],
    task: Annotated[
        str | None, typer.Option(help="what the data are for; by default the task that knows their layout")
    ] = None,
    page: Annotated[
        bool, typer.Option("--page", help="also a page of pictures of each, NAME.html, to filter and sort")
    ] = False,
    limit: Annotated[
        int, typer.Option(help="most pictures of a page: those with faults first, then spread evenly", min=1)
    ] = 300,
) -> None:
    """Describe data sets from their files: number, sizes, labels and classes of every split, in one table."""
    import importlib

    from anban.cli.tasks import of_data
    from anban.errors import InputError
    from anban.report.tables import WRITERS

    task = of_data([given.rpartition("=")[2] for given in folders], task)
    doctor = importlib.import_module(f"anban.tasks.{task}.doctor")
    counted, (noun, _) = next(iter(doctor.SUMMARY.items()))  # the first entry is what a split has samples of
    seen: dict[str, dict[str, Any]] = {}
    for given in folders:
        name, _, folder = given.rpartition("=")
        name = name or Path(folder).absolute().name
        if name in seen:
            raise InputError(
                f"Two data sets are called '{name}'.", where=folder, do="write NAME=FOLDER for one"
            )
        seen[name] = doctor.doctor(folder)
        if not any(split[counted] for split in seen[name]["splits"].values()):
            why = [finding["what"] for finding in seen[name]["findings"]] or ["nothing was found"]
            raise InputError(
                why[0], where=folder, expected=f"{noun.lower()} to describe", do=f"anban doctor {folder}"
            )
    table = _table(seen, doctor.SUMMARY)
    out.mkdir(parents=True, exist_ok=True)
    for suffix, write in WRITERS.items():
        (out / f"data.{suffix}").write_text(write(table), encoding="utf-8")
    print(WRITERS["md"](table))
    if page:
        from anban.report.browse import write_page

        browse = importlib.import_module(f"anban.tasks.{task}.browse").browse
        for name, report in seen.items():
            print(write_page(name, browse(report["data"], limit), report["findings"], out))


def _table(seen: dict[str, dict[str, Any]], summary: dict[str, tuple[str, str]]) -> Table:
    """A row per split of each data set; what the doctor found wrong stands below."""
    from anban.report.tables import Cell, Column, Row, Table

    kinds = {
        "percent": ("number", 100.0),
        "number": ("number", 1.0),
        "count": ("count", 1.0),
        "text": ("text", 1.0),
    }
    columns = [Column("data", "Data set"), Column("split", "Split")]
    for key, (title, kind) in summary.items():
        columns.append(Column(key, title, kinds[kind][0], None, kinds[kind][1]))  # type: ignore[arg-type]
    rows = []
    for name, found in seen.items():
        for split, values in found["splits"].items():
            cells = {"data": Cell(name), "split": Cell(split)}
            rows.append(Row(f"{name}/{split}", cells | {key: Cell(values[key]) for key in summary}))
    notes = tuple(
        f"{name}: {finding['what']}."
        for name, found in seen.items()
        for finding in found["findings"]
        if finding["level"] in ("error", "warning")
    )
    return Table("data", "Data sets", "Counted from the files.", tuple(columns), tuple(rows), notes)
