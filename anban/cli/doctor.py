"""`anban doctor`: what is wrong with a data folder, a run or a recipe."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from anban.cli.recipes import AsJson, Overrides
from anban.cli.run import Device, check_device
from anban.cli.show import as_json, as_table


def doctor(
    target: Annotated[
        Path,
        typer.Argument(metavar="DATA_OR_RUN_OR_ID", help="a data folder, a run folder, or a recipe's id"),
    ],
    overrides: Overrides = None,
    task: Annotated[
        str | None, typer.Option(help="what the data is for; by default the task that knows its layout")
    ] = None,
    steps: Annotated[int, typer.Option(help="of a recipe: steps on its first batch", min=1)] = 20,
    out: Annotated[Path | None, typer.Option(help="of a recipe: folder for probe.png and probe.json")] = None,
    device: Device = None,
    json: AsJson = False,
) -> None:
    """Look for what spoils training: layout and label coding of data, the health of a run, the gradient of a recipe."""
    import importlib

    from anban.cli.tasks import of_data
    from anban.errors import InputError
    from anban.recipe.recipe import recipe_files

    of_recipe = target.as_posix() in recipe_files() or target.suffix in (".yaml", ".yml")
    if not of_recipe and (overrides or out):
        raise InputError("Changes and figures are of recipes.", where=target, expected="a recipe's id")
    if of_recipe:
        found: dict[str, Any] = _probe(target.as_posix(), overrides or [], steps, out, device)
    elif (target / "run.json").is_file():
        found = _run_health(target)
    elif target.is_dir():
        found = importlib.import_module(f"anban.tasks.{of_data([target], task)}.doctor").doctor(target)
    else:
        raise InputError("There is no such folder.", where=target,
                         expected="a data folder, a run folder or a recipe's id")  # fmt: skip
    if json:
        as_json(found)
    else:
        for key, value in found.items():
            if key not in ("findings", "parts"):
                print(f"{key}: {value}")
        if "parts" in found:
            _tell_parts(found["parts"])
        for finding in found["findings"]:
            parts = [f"{finding['level']}: {finding['what']}"]
            parts += [f"  {key}: {finding[key]}" for key in ("where", "cause", "do") if finding.get(key)]
            print("\n".join(parts))
        if not found["findings"]:
            print("nothing found")
    if any(f["level"] == "error" for f in found["findings"]):
        raise typer.Exit(1)


def _probe(
    name: str, overrides: list[str], steps: int, out: Path | None, device: str | None
) -> dict[str, Any]:
    """A recipe on one batch of its data."""
    import torch

    from anban.engine import probe
    from anban.recipe import load_recipe

    check_device(device)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    seen = probe.probe_recipe(load_recipe(name, overrides), target, steps)
    found = {"recipe": name, **seen.told()}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        probe.draw(seen).savefig(out / "probe.png", dpi=150)
        (out / "probe.json").write_text(dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
    return found


def _tell_parts(parts: dict[str, Any]) -> None:
    """Gradient norms over parameter norms of a network's parts, and whether they know where their tokens are."""
    header = ("part", "parameters", "gradient", "of parameters", "in the end", "of parameters", "places")
    rows = []
    for name, part in parts.items():
        pairs = [*zip(part["norms"], part["ratios"], strict=True)] or [(None, None)]
        values = [*pairs[0], *pairs[-1], part["places"]]
        rows.append((name, part["parameters"], *("–" if x is None else f"{x:.2e}" for x in values)))
    as_table(rows, header)


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
