"""Sliding windows (256 px, every 128 px) over a pair of pictures with TinyCD, against the whole picture at once.

Overlapping windows look at most pixels four times, so they cannot be as quick as one pass over the whole: the peer that
tells what cutting and averaging cost is the network alone, on the same windows cut beforehand. Then 8 windows at once, as
on a GPU, against one by one, as on a CPU. Time is measured on 512 px (9 windows), where a round takes seconds; memory,
which matters for large pictures, on 1024 px (49 windows), once each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import anban
from anban.data.tiles import grid, predict_tiled
from benchmarks.timing import Row, Unavailable, interleave, megabytes, row, seconds

SIZE, STRIDE = 256, 128
WHOLE, CUT = "the whole at once", "network alone on the windows"


@torch.inference_mode()
def run(rounds: int) -> list[Row]:
    """Time on 512 px, memory on 1024 px."""
    network = anban.create_model("change/tinycd").eval()

    def predict(a: Tensor, b: Tensor) -> Tensor:
        probability: Tensor = network(a, b).sigmoid()
        return probability

    def ways(side: int) -> dict[str, Callable[[], Tensor]]:
        a, b = torch.randn(2, 1, 3, side, side, generator=torch.Generator().manual_seed(0))
        return {
            **{
                f"windows by {n}": lambda n=n: predict_tiled(predict, a, b, SIZE, STRIDE, n)  # type: ignore[misc]
                for n in (1, 8)
            },
            WHOLE: lambda: predict(a, b),
        }

    small = ways(512)
    cut = torch.randn(2, len(grid(512, 512, SIZE, STRIDE)), 3, SIZE, SIZE)
    small[CUT] = lambda: torch.cat([predict(*pair) for pair in zip(*(x.split(1) for x in cut), strict=True)])
    times = interleave({name: seconds(work) for name, work in small.items()}, rounds)
    rows = [
        row(times, "512 px", "windows by 1", CUT),
        row(times, "512 px", "windows by 1", WHOLE),
        row(times, "512 px", "windows by 8", "windows by 1"),
    ]
    try:
        memory = interleave({n: megabytes(work) for n, work in ways(1024).items()}, 1, warm=False)
    except Unavailable:
        return rows
    case = "1024 px, peak memory"
    return rows + [row(memory, case, f"windows by {n}", WHOLE, "MB") for n in (1, 8)]
