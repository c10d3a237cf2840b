"""`anban report`: tables, figures and one page from records; needs no GPU and no data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    out: Annotated[Path, typer.Option(help="folder for report.html, tables/ and figures/")],
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="STUDY_OR_RUNS…",
            help="a study (its folder or study.json), or run folders; with --effects none, for all runs",
            show_default=False,
        ),
    ] = None,
    convention: Annotated[
        str | None,
        typer.Option(
            help="colours of true and false positives and negatives: fp-red-fn-green (the default), "
            "fp-green-fn-red, opencd, fp-red-fn-blue, fp-red-fn-cyan or colour-blind"
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="split of the scores; the study's own, or that of the runs' first score, by default"
        ),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="protocol of the scores; by default found as the split is")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="score of differences and curves; the study's own by default")
    ] = None,
    mix_protocols: Annotated[
        bool,
        typer.Option(
            "--mix-protocols", help="allow different protocols, data or test images; the tables then say so"
        ),
    ] = False,
    quoted: Annotated[
        Path | None, typer.Option(help="YAML of numbers quoted from papers, marked so in the comparison")
    ] = None,
    effects: Annotated[
        bool,
        typer.Option(
            "--effects", help="what each switch does: a regression over all runs of the study, or of --runs"
        ),
    ] = False,
    runs: Annotated[
        Path | None,
        typer.Option(help="with --effects: the folder of all runs (default: runs)", show_default=False),
    ] = None,
    task: Annotated[str | None, typer.Option(help="with --effects: the task of those runs")] = None,
) -> None:
    """Write tables (Markdown, LaTeX, CSV), figures and one self-contained page."""
    from anban.errors import InputError
    from anban.report import write_effects, write_report

    if sources:
        if runs is not None or task is not None:
            raise InputError("--runs and --task stand for all runs, and there are studies or runs too.",
                             where="anban report", do="leave out either")  # fmt: skip
        page = write_report(
            sources[0] if len(sources) == 1 else sources,
            out,
            convention=convention,
            split=split,
            protocol=protocol,
            metric=metric,
            mix_protocols=mix_protocols,
            with_effects=effects,
            quoted=quoted,
        )
    elif effects:
        if quoted is not None:
            raise InputError("Quoted numbers stand in a comparison, and there is none of all runs.",
                             where="--quoted", do="name a study")  # fmt: skip
        page = write_effects(
            runs or Path("runs"), out, task=task, split=split, protocol=protocol, metric=metric
        )
    else:
        raise InputError("Nothing to report on.", where="anban report",
                         expected="a study, run folders, or --effects for all runs")  # fmt: skip
    print(page.absolute())
