"""The numbers reported for change maps, and the one that picks the checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from anban.metrics import binary_scores, defined

SELECT = "f1"
CLASSES = ("no change", "change")
COUNTS = ("tn", "fp", "fn", "tp")
FORMULAS = binary_scores
"""The function whose docstring has the formulas of the scores."""


def counts(probability: Tensor, label: Tensor, threshold: float, *, valid: Tensor | None = None) -> Tensor:
    """Right and wrong pixels per image, int64 (B, 4) in the order (tn, fp, fn, tp), on the device of `probability`.

    Args:
        probability: of change, (B, 1, H, W) or (B, H, W), 0..1.
        label: (B, 1, H, W) or (B, H, W), 0 or 1.
        threshold: a pixel is called change above it; at it, not.
        valid: true where a pixel counts; None counts all.
    """
    predicted, change = (_maps(probability) > threshold), (_maps(label) > 0)
    if predicted.shape != change.shape:
        raise ValueError(f"probability is {tuple(probability.shape)}, label {tuple(label.shape)}")
    counted = torch.ones_like(change) if valid is None else _maps(valid).bool()
    cells = (~predicted & ~change, predicted & ~change, ~predicted & change, predicted & change)
    return torch.stack([(cell & counted).flatten(1).sum(1) for cell in cells], dim=1)


def score(counts_total: ArrayLike | Tensor) -> dict[str, float | None]:
    """The reported scores of summed counts (4,), fractions; None where one is undefined (see `binary_scores`)."""
    return {name: defined(float(value)) for name, value in binary_scores(_array(counts_total)).items()}


def sample_record(name: str, image_counts: ArrayLike | Tensor) -> dict[str, Any]:
    """What samples.jsonl keeps of an image: its counts (4,) and its scores."""
    numbers = [int(number) for number in _array(image_counts)]
    return {
        "name": name,
        "counts": dict(zip(COUNTS, numbers, strict=True)),
        "scores": score(numbers),
    }


def _maps(tensor: Tensor) -> Tensor:
    return tensor[:, 0] if tensor.ndim == 4 and tensor.shape[1] == 1 else tensor


def _array(values: ArrayLike | Tensor) -> Any:
    return values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
