"""`anban doctor`: what is wrong with a data folder or a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from anban.cli.recipes import AsJson
from anban.cli.show import as_json


def doctor(
    target: Annotated[Path, typer.Argument(metavar="DATA_OR_RUN", help="a data folder, or a run folder")],
    task: Annotated[
        str | None, typer.Option(help="what the data is for; by default the task that knows its layout")
    ] = None,
    json: AsJson = False,
) -> None:
    """Look for what spoils training: layout and label coding of data, the health of a run."""
    import importlib

    from anban.cli.tasks import of_data
    from anban.errors import InputError

    if (target / "run.json").is_file():
        found: dict[str, Any] = _run_health(target)
    elif target.is_dir():
        found = importlib.import_module(f"anban.tasks.{of_data([target], task)}.doctor").doctor(target)
    else:
        raise InputError("There is no such folder.", where=target)
    if json:
        as_json(found)
    else:
        for key, value in found.items():
            if key != "findings":
                print(f"{key}: {value}")
        for finding in found["findings"]:
            parts = [f"{finding['level']}: {finding['what']}"]
            parts += [f"  {key}: {finding[key]}" for key in ("where", "cause", "do") if finding.get(key)]
            print("\n".join(parts))
        if not found["findings"]:
            print("nothing found")
    if any(f["level"] == "error" for f in found["findings"]):
        raise typer.Exit(1)


def _run_health(path: Path) -> dict[str, Any]:
    from anban.record import RunFolder

    run = RunFolder.open(path)
    info = run.info
    # Runs of before there were outcomes have sentences under `warnings`.
    findings = [{"level": "warning", "what": text} for text in info.get("warnings") or []]
    for finding in info.get("findings") or []:
        findings.append(_found(finding, run.state == "failed" and finding["kind"] == info.get("outcome")))
    if run.state in ("failed", "lost") and all(finding["level"] != "error" for finding in findings):
        why = info["why"] or "its process is gone (killed, perhaps for want of memory)"
        findings.append(
            {"level": "error", "what": f"the run is {run.state}: {why}", "do": "anban run ID --resume"}
        )
    wait = (info.get("time") or {}).get("data_wait_share") or 0
    if wait > 0.3:
        findings.append({"level": "info", "what": f"{100 * wait:.0f} % of the time is spent waiting for data",
                         "do": "raise machine.workers"})  # fmt: skip
    return {
        "run": info["id"],
        "state": run.state,
        "outcome": info.get("outcome"),
        "findings": findings,
    }


def _found(finding: dict[str, Any], fatal: bool) -> dict[str, Any]:
    """A finding of the run's record: what ended the run is an error, what has gone by itself only worth knowing."""
    level = "error" if fatal else "warning" if finding["ended"] is None else "info"
    ended = f", until step {finding['ended']}" if finding["ended"] is not None else ""
    return {
        "level": level,
        "kind": finding["kind"],
        "what": f"{finding['kind']} since step {finding['step']}{ended}: {finding['what']}",
        "cause": finding["cause"],
        "do": finding["remedy"],
    }
