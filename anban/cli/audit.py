"""`anban audit`: what is wrong with a collection of images, and a clean subset of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from anban.cli.recipes import AsJson


def audit(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="the collection; nothing in it is written")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the outputs, outside of DIR")] = None,
    checks: Annotated[
        str | None, typer.Option(help="of the pictures, by commas (quality,language ...); all by default")
    ] = None,
    limits: Annotated[
        Path | None, typer.Option(help="YAML file with the thresholds that are to differ")
    ] = None,
    passwords: Annotated[
        Path | None, typer.Option(help="text file of passwords to try on archives, one a line")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="processes; 0 for this one alone; all cores by default", min=0)
    ] = None,
    launcher: Annotated[
        Literal["local", "ray"], typer.Option(help="this machine, or a Ray cluster (RAY_ADDRESS)")
    ] = "local",
    act: Annotated[
        Literal["list", "move", "link"] | None,
        typer.Option(
            "--apply",
            help="the fit files as a list or as links in OUT, or the unfit moved to OUT; see --undo",
        ),
    ] = None,
    undo: Annotated[
        Path | None, typer.Option(help="take back what an undo file of --apply tells, and nothing else")
    ] = None,
    json: AsJson = False,
) -> None:
    """Find what spoils a collection: foreign and broken files, archives, copies, poor and unwanted pictures."""
    from anban.audit.apply import apply
    from anban.audit.apply import undo as take_back
    from anban.audit.limits import read_limits
    from anban.audit.run import Audit
    from anban.audit.run import audit as run_audit
    from anban.cli.show import as_json
    from anban.errors import InputError

    told: dict[str, Any]
    if undo is not None:
        told = {"undone": take_back(undo)}
    elif folder is None or out is None:
        raise InputError("A folder to audit and a folder for the outputs are needed.", where="anban audit",
                         do="anban audit DIR --out DIR")  # fmt: skip
    else:
        names = None if checks is None else [name for name in checks.split(",") if name]
        try:
            told = run_audit(Audit(folder, out, names, limits, _lines(passwords), workers, launcher))
        except KeyboardInterrupt:
            print("anban: stopped; the same command goes on from here", file=sys.stderr)
            raise
        if act is not None:
            told["applied"] = apply(act, folder, out, read_limits(limits)["clean"])
    if json:
        as_json(told)
    else:
        _tell(told, out)


def _lines(file: Path | None) -> tuple[str, ...]:
    """The passwords of a file."""
    from anban.errors import InputError

    if file is None:
        return ()
    try:
        return tuple(line for line in file.read_text(encoding="utf-8-sig").splitlines() if line)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The passwords cannot be read: {error}", where=file, expected="UTF-8 text"
        ) from None


def _tell(told: dict[str, Any], out: Path | None) -> None:
    from anban.audit.finding import PROBLEMS
    from anban.cli.show import as_table

    if "problems" in told:
        print(f"{told['files']} files, {told['fit']} fit, {told['pass']['looked_at']} looked at in this pass")
        rows = [(name, count, PROBLEMS[name].means) for name, count in told["problems"].items()]
        if rows:
            as_table(rows, ("problem", "files", "means"))
        for name, why in told["not_run"].items():
            print(f"not run: {name} ({why})")
        print(f"page: {out / 'audit.html' if out else ''}")
    for result in (told.get("applied"), told.get("undone")):
        if result is None:
            continue
        print(f"{result['done']} files {result.get('way', 'taken back')}, {len(result['skipped'])} skipped")
        for path, why in result["skipped"].items():
            print(f"  {path}: {why}")
        if result.get("undo"):
            print(f"undo: anban audit --undo {result['undo']}")
