"""`anban report`: tables, figures and one page from records; needs no GPU and no data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="STUDY_OR_RUNS…", help="a study (its folder or study.json), or run folders"),
    ],
    out: Annotated[Path, typer.Option(help="folder for report.html, tables/ and figures/")],
    convention: Annotated[
        str,
        typer.Option(
            help="colours of change maps: fp-red-fn-green, fp-green-fn-red, opencd, fp-red-fn-blue, "
            "fp-red-fn-cyan or colour-blind"
        ),
    ] = "fp-red-fn-green",
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
) -> None:
    """Write tables (Markdown, LaTeX, CSV), figures and one self-contained page."""
    from anban.report import write_report

    source = sources[0] if len(sources) == 1 else sources
    print(
        write_report(
            source,
            out,
            convention=convention,
            split=split,
            protocol=protocol,
            metric=metric,
            mix_protocols=mix_protocols,
        ).absolute()
    )
