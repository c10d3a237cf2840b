"""One self-contained page to look through a data set: pictures with their labels, filtered, sorted, page by page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from anban.data.browse import Browsed, Item
from anban.report.page import template


def write_page(name: str, browsed: Browsed, findings: Sequence[Mapping[str, Any]], out: Path) -> Path:
    """Write `out`/<name>.html and return its path.

    Args:
        name: of the data set.
        browsed: what a task's `browse` returns.
        findings: the doctor's: `level`, `what`, `where`, `do`.
    """
    kinds = dict.fromkeys(kind for item in browsed.items for kind in item.tags)
    tags = {
        kind: sorted({tag for item in browsed.items for tag in item.tags.get(kind, ())}) for kind in kinds
    }
    text = template("browse.html.j2").render(
        name=name,
        total=browsed.total,
        heading=browsed.table[0] if browsed.table else [],
        rows=browsed.table[1:],
        splits=list(dict.fromkeys(item.split for item in browsed.items)),
        tags={kind: values for kind, values in tags.items() if values},
        numbers=list(dict.fromkeys(number for item in browsed.items for number in item.numbers)),
        items=[_view(item) for item in browsed.items],
        findings=findings,
    )
    out.mkdir(parents=True, exist_ok=True)
    page = out / f"{name.replace('/', '-')}.html"
    page.write_text(text, encoding="utf-8", newline="\n")
    return page


def _view(item: Item) -> dict[str, Any]:
    """An item as the page's script reads it."""
    buffer = io.BytesIO()
    Image.fromarray(item.picture).save(buffer, "JPEG", quality=80)
    return {
        "name": item.name,
        "split": item.split,
        "tags": {kind: list(tags) for kind, tags in item.tags.items()},
        "numbers": dict(item.numbers),
        "notes": list(item.notes),
        "picture": "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(),
    }
