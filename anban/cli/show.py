"""Printing: JSON for programs, aligned text for people. Standard output carries results only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def as_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def as_table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> None:
    """Columns padded to their widest cell; numbers to the right."""
    text = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(h), *(len(row[i]) for row in text)]) for i, h in enumerate(header)]
    numeric = [
        bool(rows) and all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(header))
    ]
    for line in [list(header), *text]:
        cells = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric, strict=True)]
        print("  ".join(cells).rstrip())


def as_score(name: str, value: float | None) -> str:
    """A score as tables print it: shares times 100, undefined is a dash."""
    from anban.study.scores import score_named

    score = score_named(name)
    return "–" if value is None else f"{score.scale * value:.{score.digits}f}"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
