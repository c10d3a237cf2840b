"""The numbers reported for class maps, and the one that picks the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anban.metrics import defined
from anban.metrics.classes import class_scores

SELECT = "miou"
FORMULAS = class_scores
"""The function whose docstring has the formulas of the scores."""


def sample_record(name: str, matrix: NDArray[np.int64]) -> dict[str, Any]:
    """What samples.jsonl keeps of an image: its confusion matrix (K, K), [label][prediction], and its scores."""
    return {"name": name, "confusion": matrix.tolist(), "scores": score(matrix)}


def score(matrix: NDArray[np.int64]) -> dict[str, float | None]:
    """The reported scores of a confusion matrix (K, K), fractions; None where one is undefined."""
    return {name: defined(float(value)) for name, value in class_scores(matrix).items()}


def total(records: Sequence[dict[str, Any]], classes: int) -> NDArray[np.int64]:
    """The confusion matrix (K, K) of all samples together."""
    matrices = np.array([record["confusion"] for record in records], dtype=np.int64)
    summed: NDArray[np.int64] = matrices.reshape(-1, classes, classes).sum(axis=0)
    return summed
