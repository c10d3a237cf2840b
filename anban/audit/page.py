"""The audit as one self-contained HTML page: counts per problem, pictures with the evidence drawn on them, filters."""

from __future__ import annotations

import base64
import io
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageOps

from anban.audit import telling
from anban.audit.finding import PROBLEMS, Finding
from anban.audit.index import Index, Known
from anban.audit.picture import DEEP_MODES, decoders
from anban.recipe.schema import Count
from anban.record.files import plain, write_atomically

#: What the page calls files that nothing was found on.
NOTHING = "nothing found"

#: Shapes of one picture that are drawn; a page of text has hundreds of lines.
_SHAPES = 60


@dataclass(frozen=True)
class Limits:
    """How much the page shows; see limits.yaml."""

    per_problem: Count
    side: Count


def write_page(
    index: Index, out: Path, summary: Mapping[str, Any], limits: Limits, clean: telling.Limits
) -> Path:
    """Write `out`/audit.html and return its path.

    Args:
        summary: as summary.json holds it.
        limits: how much is shown.
        clean: what makes a file unfit.
    """
    shown = _chosen(index, limits, clean)
    root = os.fsencode(summary["root"])
    with ThreadPoolExecutor(
        max(1, min(4, os.cpu_count() or 1))
    ) as pool:  # Pillow decodes without Python's lock
        thumbnails = pool.map(lambda known: _thumbnail(root, known, limits.side), shown)
        items = [_item(known, picture, clean) for known, picture in zip(shown, thumbnails, strict=True)]
    # By their paths: asked for by its package, that of the reports would import matplotlib.
    here = Path(__file__).parent
    loader = FileSystemLoader([here / "templates", here.parent / "report" / "templates"])
    made = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = made.get_template("audit.html.j2").render(
        name=plain(Path(summary["root"]).name),
        summary=summary,
        problems=[
            (name, count, PROBLEMS[name], clean.condemns(name)) for name, count in summary["problems"].items()
        ],
        items=items,
        groups=sorted({item["group"] for item in items}),
        nothing=NOTHING,
        per_problem=limits.per_problem,
    )
    write_atomically(out / "audit.html", text)
    return out / "audit.html"


def _chosen(index: Index, limits: Limits, clean: telling.Limits) -> list[Known]:
    """Files and folders to show: of every problem the first so many."""
    counts: Counter[str] = Counter()
    shown = []
    for known in telling.everything(index, clean):
        problems = {finding.problem for finding in known.findings} or {NOTHING}
        if any(counts[problem] < limits.per_problem for problem in problems):
            counts.update(problems)
            shown.append(known)
    return shown


def _thumbnail(root: bytes, known: Known, side: int) -> str:
    """A data URI of the picture; empty for what is none, or has changed since."""
    if known.size is None:
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            buffer = io.BytesIO()
            _small(os.path.join(os.fsdecode(root), known.name), side).save(buffer, "JPEG", quality=72)
    except Exception:  # the finding on the file says what is wrong with it
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _small(path: str, side: int) -> Image.Image:
    """The picture upright, in RGB over white, at most `side` pixels high and wide."""
    with Image.open(path, formats=decoders()) as opened:
        opened.draft("RGB", (side, side))
        opened.thumbnail((side, side), reducing_gap=2.0)
        image = ImageOps.exif_transpose(opened)
    if image.mode in DEEP_MODES:
        values = np.asarray(image, np.float32)
        image = Image.fromarray((255 * values / max(float(values.max()), 1)).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _item(known: Known, picture: str, clean: telling.Limits) -> dict[str, Any]:
    """What the page's script reads."""
    folder, _, name = known.name.rstrip("/").rpartition("/")
    width, height = known.size or (0, 0)
    item = {
        "name": name + ("/" if known.entries is not None else ""),
        "folder": folder or ".",
        "group": known.group,
        "format": known.format,
        "width": width,
        "height": height,
        "bytes": known.bytes,
        "fit": telling.is_fit(known, clean),
        "picture": picture,
        "findings": [_told(finding, clean) for finding in known.findings],
    }
    return {key: plain(value) for key, value in item.items()}


def _told(finding: Finding, clean: telling.Limits) -> dict[str, Any]:
    return {
        "problem": finding.problem,
        "what": finding.what,
        "score": finding.score,
        "unfit": clean.condemns(finding.problem),
        "shapes": [
            {"kind": shape.kind, "points": shape.points, "label": shape.label}
            for shape in finding.evidence[:_SHAPES]
        ],
    }
