"""What a check says about a file or folder, and the list of the problems it may say it of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Point = tuple[float, float]


class Problem(NamedTuple):
    """A kind of finding.

    Attributes:
        number: of the seven problems of the notebook's poster collection; None where it names none.
        unfit: whether a file that has it is left out of the clean subset, unless the limits say otherwise.
        means: one sentence.
    """

    number: int | None
    unfit: bool
    means: str


PROBLEMS: dict[str, Problem] = {
    "non_image_file": Problem(1, True, "By its content the file is no picture to train on."),
    "wrong_extension": Problem(1, False, "The name ends in what the content is not."),
    "corrupt": Problem(1, True, "The file begins as a picture and cannot be decoded to its end."),
    "too_large": Problem(
        None, True, "The picture has more bytes or pixels than are read; it was not decoded."
    ),
    "cmyk": Problem(None, False, "The colours are those of a press (CMYK), not of a screen."),
    "sixteen_bit": Problem(None, False, "A channel has more than eight bits."),
    "animated": Problem(None, False, "The file holds more than one frame."),
    "exif_rotated": Problem(None, False, "The pixels are stored turned; EXIF says how to hold them upright."),
    "archive": Problem(2, True, "The file is an archive, or one of them lies in it."),
    "password_protected": Problem(2, True, "Without a password the content cannot be read."),
    "hostile_archive": Problem(2, True, "The archive is damaged, or made to harm whoever unpacks it."),
    "empty_folder": Problem(3, True, "There is nothing in the folder."),
    "nothing_usable": Problem(3, True, "No file in the folder or below is fit."),
    "zh_en_text": Problem(4, False, "There is readable Chinese or English text."),
    "japanese_text": Problem(4, True, "There is Japanese text (kana)."),
    "undecided_text": Problem(4, False, "There is text, and its characters do not tell the language."),
    "paper_edges": Problem(5, True, "The picture is a photograph or scan of a print."),
    "watermark": Problem(6, True, "A mark was laid over the picture."),
    "low_resolution": Problem(6, True, "The picture has too few pixels."),
    "blurred": Problem(6, True, "The picture is out of focus, or was moved while it was taken."),
    "compressed": Problem(6, False, "Compression has left visible blocks."),
    "upscaled": Problem(6, False, "The picture was enlarged: its fine detail is missing."),
    "text_heavy": Problem(7, True, "Much of the picture is text."),
    "line_art": Problem(7, True, "The picture is a drawing of black lines on white."),
    "manga_panel": Problem(7, True, "The picture is laid out in comic panels."),
    "character_sheet": Problem(
        7, True, "The picture shows a figure in several poses, or cut out on its own."
    ),
    "violation": Problem(7, True, "The user's classifier found violence or another forbidden content."),
    "duplicate": Problem(None, True, "Byte for byte the same as another file."),
    "near_duplicate": Problem(None, True, "The same picture as another, at another size or compression."),
    "split_leak": Problem(None, True, "The picture is also in another split of the data set."),
    "check_failed": Problem(None, False, "A check broke off on this file: it is neither clean nor guilty."),
}


@dataclass(frozen=True)
class Shape:
    """Evidence to draw on a picture, in the picture's own upright pixels: x to the right, y down.

    Attributes:
        points: the corners of a polygon, or two opposite corners of a box.
        label: a word to write beside it.
    """

    kind: Literal["box", "polygon"]
    points: tuple[Point, ...]
    label: str = ""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        problem: a key of `PROBLEMS`.
        what: what is seen, with its numbers, as one sentence.
        score: how sure, 0 to 1, where the check has such a figure.
        evidence: where it is seen.
        data: further figures, as JSON can hold them.
    """

    problem: str
    what: str
    score: float | None = None
    evidence: tuple[Shape, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.problem not in PROBLEMS:
            raise ValueError(f"'{self.problem}' is no problem of the list")

    def told(self) -> dict[str, Any]:
        """As a JSON object; `of` reads it back."""
        shapes = [{"kind": each.kind, "points": each.points, "label": each.label} for each in self.evidence]
        return {
            "problem": self.problem,
            "what": self.what,
            "score": self.score,
            "evidence": shapes,
            "data": dict(self.data),
        }

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Finding:
        shapes = tuple(
            Shape(shape["kind"], tuple((x, y) for x, y in shape["points"]), shape["label"])
            for shape in told["evidence"]
        )
        return cls(told["problem"], told["what"], told["score"], shapes, told["data"])
