"""Forward and backward of `anban.losses.lovasz_hinge` on 8 maps of 256 x 256 against the paper's formula as written.

The reference is Algorithm 1 of Berman et al. 2018: sort the errors, cumulative sums of the sorted labels, the Jaccard
loss after each pixel, and the difference of neighbours as the gradient; for all images at once, in float32. Ours takes
these differences in closed form from integer sums, sorts stably and knows pixels that do not count; the reference does
none of it. Memory is the most that the process grows by during both passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anban.losses import lovasz_hinge
from benchmarks.timing import Row, interleave, megabytes, row, seconds

OURS, PEER = "lovasz_hinge", "paper's formula"


def run(rounds: int) -> list[Row]:
    """Time and memory, for all pixels counted and for a tenth of them ignored (ours only: the peer has no such thing)."""
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(8, 1, 256, 256, generator=generator) > 0.9).to(torch.uint8)
    logit = torch.randn(label.shape, generator=generator).requires_grad_()
    valid = torch.rand(label.shape, generator=generator) > 0.1
    torch.testing.assert_close(lovasz_hinge(logit, label), reference(logit, label))
    works = {
        OURS: lambda: torch.autograd.grad(lovasz_hinge(logit, label), logit),
        f"{OURS}, with valid": lambda: torch.autograd.grad(lovasz_hinge(logit, label, valid=valid), logit),
        PEER: lambda: torch.autograd.grad(reference(logit, label), logit),
    }
    times = interleave({name: seconds(work, repeat=3) for name, work in works.items()}, rounds)
    memory = interleave({name: megabytes(work) for name, work in works.items()}, rounds)
    case = "8 maps of 256 px"
    return [
        *(row(times, f"{case}, forward + backward", name, PEER) for name in works if name != PEER),
        row(memory, f"{case}, peak memory", OURS, PEER, "MB"),
    ]


def reference(logit: Tensor, label: Tensor) -> Tensor:
    """Mean over images of the Lovász hinge, by the formula."""
    logit, label = logit.flatten(1), label.flatten(1).float()
    errors, order = torch.sort(1 - logit * (2 * label - 1), dim=1, descending=True)
    label = label.gather(1, order)
    members = label.sum(1, keepdim=True)
    intersection = members - label.cumsum(1)
    union = members + (1 - label).cumsum(1)
    jaccard = 1 - intersection / union
    gradient = torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], dim=1)
    return (torch.relu(errors) * gradient).sum(1).mean()
