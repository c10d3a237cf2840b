"""Numbers quoted from papers, to stand beside measured ones in a comparison table, always marked as what they are.

A file of quoted numbers is YAML:

    quoted:
      - method: ChangeFormer
        data: LEVIR-CD
        scores: {precision: 92.05, recall: 88.80, f1: 90.40, iou: 82.48, oa: 99.04}   # as printed: shares in percent
        protocol: 256 px crops                    # how they were measured, as far as the source says
        source: {title: Bandara and Patel 2022, arxiv: "2201.01293", table: 1}        # or doi instead of arxiv
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Interval, Len

from anban.errors import InputError
from anban.recipe.schema import Arguments, bind, unknown
from anban.recipe.yamlfile import read
from anban.study.scores import NAMED

Printed = Annotated[float, Interval(ge=0, le=100)]


@dataclass(frozen=True)
class Source:
    """Where numbers were printed: the paper's name, its DOI or arXiv number, and the number of the table there."""

    title: Annotated[str, Len(1)]
    table: Annotated[int, Ge(1)] | Annotated[str, Len(1)]
    doi: str = ""
    arxiv: str = ""

    def __str__(self) -> str:
        places = [f"doi:{self.doi}" if self.doi else "", f"arXiv:{self.arxiv}" if self.arxiv else ""]
        return ", ".join([self.title, *filter(None, places), f"table {self.table}"])


@dataclass(frozen=True)
class Quoted:
    """One quoted row; `scores` as they are shown in the file (shares in percent), and as in the records once read."""

    method: Annotated[str, Len(1)]
    data: Annotated[str, Len(1)]
    scores: Annotated[dict[str, Printed], Len(1)]
    source: Source
    protocol: str = ""


def read_quoted(path: Path | str) -> list[Quoted]:
    """The rows of a file of quoted numbers, scores as in the records (shares as fractions).

    Raises:
        InputError: something in the file cannot be used; names the file and the key.
    """
    file = Path(path)
    content = read(file)
    rows = content.get("quoted")
    if len(content) != 1 or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"Found the keys {', '.join(content) or 'none'}.", where=file,
                         expected="one key 'quoted' with a list of rows")  # fmt: skip
    try:
        return [_row(f"quoted.{place}", row) for place, row in enumerate(rows)]
    except InputError as error:
        key = str(error.where)
        raise InputError(
            error.what,
            where=f"{file}, key '{key}'" if key.startswith("quoted.") else file,
            expected=error.expected,
            do=error.do if error.what.startswith("Unknown") else None,  # the rest speaks of recipes
        ) from None


def _row(place: str, words: dict[str, Any]) -> Quoted:
    bound, _ = bind({place: Arguments(f"{__name__}:Quoted")}, {place: words})
    row = bound[place]
    source = Source(**row["source"])
    if not (source.doi or source.arxiv):
        raise InputError("The source has neither DOI nor arXiv number.", where=f"{place}.source")
    for name in row["scores"]:
        if name not in NAMED:
            raise unknown("score", name, NAMED, f"{place}.scores")
    shares = [value for name, value in row["scores"].items() if NAMED[name].is_share]
    if shares and max(shares) <= 1:
        raise InputError("No score is above 1: these look like fractions.", where=f"{place}.scores",
                         expected="percent, as papers print them")  # fmt: skip
    scores = {name: round(value / NAMED[name].scale, 12) for name, value in row["scores"].items()}
    return Quoted(**{**row, "source": source, "scores": scores})
