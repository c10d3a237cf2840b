"""`anban profile`: what a network costs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from anban.cli.recipes import AsJson
from anban.cli.run import Device
from anban.cli.show import as_json, as_table


def profile(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="ID...", help="recipes (task/name), networks (task/model), run folders or checkpoints"
        ),
    ],
    size: Annotated[int, typer.Option(help="height and width of the inputs in pixels")] = 256,
    batch: Annotated[int, typer.Option(help="inputs at once", min=1)] = 1,
    device: Device = None,
    json: AsJson = False,
) -> None:
    """Parameters, MACs, FLOPs, FPS and peak memory of networks at a stated input, with the sizes of every level."""
    import torch

    from anban.cli.networks import build
    from anban.cli.run import check_device
    from anban.engine.profile import levels
    from anban.engine.profile import profile as measure

    check_device(device)
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    results = []
    for name in names:
        model, example, _ = build(name, [])
        inputs = tuple(torch.randn(batch, x.shape[1], size, size) for x in example)
        results.append({"id": name, **measure(model, inputs, device=target), "levels": levels(model, inputs)})
    if json:
        as_json(results)
        return
    header = (
        "id",
        "input",
        "params (M)",
        "MACs (G)",
        "FLOPs (G)",
        "FPS",
        "p50 (ms)",
        "p95 (ms)",
        "memory (MB)",
        "device",
    )
    as_table([_row(r) for r in results], header)
    for result in results:
        print(f"\n{result['id']}: sizes of its parts")
        as_table([(part["part"], "  ".join("x".join(map(str, s)) for s in part["shapes"])) for part in result["levels"]],
                 ("part", "puts out"))  # fmt: skip
        if result["uncounted"]:
            print(f"{result['id']}: not counted: {', '.join(result['uncounted'])}")


def _row(r: dict[str, Any]) -> tuple[Any, ...]:
    return (r["id"], r["input"], r["parameters"] / 1e6, r["macs"] / 1e9, r["flops"] / 1e9, r["fps"],
            r["latency_ms"]["p50"], r["latency_ms"]["p95"], r["peak_memory_mb"], r["device"])  # fmt: skip
