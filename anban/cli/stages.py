"""`anban stages`: networks as lists of stages, side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from anban.cli.recipes import AsJson
from anban.cli.show import as_json, as_table


def stages(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="ID...", help="recipes (task/name), networks (task/model), run folders or checkpoints"
        ),
    ],
    size: Annotated[int, typer.Option(help="height and width of the inputs in pixels", min=1)] = 256,
    differing: Annotated[bool, typer.Option("--differing", help="only what differs")] = False,
    json: AsJson = False,
) -> None:
    """Describe networks stage by stage, one column each: what begins a stage, its layers, sizes and costs.

    A star marks what is not the same in all of them: the original, the current and the planned network, say.
    """
    import torch

    from anban.cli.networks import build
    from anban.engine.stages import side_by_side
    from anban.engine.stages import stages as describe

    networks = []
    for name in names:
        model, example, _ = build(name, [])
        networks.append(describe(model, tuple(torch.randn(1, x.shape[1], size, size) for x in example)))
    if json:
        as_json(
            [{"id": name, "size": size, "stages": found} for name, found in zip(names, networks, strict=True)]
        )
        return
    print(f"inputs of {size}x{size}\n")
    rows = [row for row in side_by_side(networks) if row.differs or not differing]
    begun = {row.part: number for number, row in reversed(list(enumerate(rows)))}
    as_table([("*" if row.differs else "", row.part if begun[row.part] == number else "", row.entry, *row.texts)
              for number, row in enumerate(rows)], ("", "part", "", *names))  # fmt: skip
