"""Text in the picture, and its language: Chinese, English, Japanese, or honestly undecided.

Text is read by RapidOCR (`pip install rapidocr onnxruntime`) with the PP-OCRv6 models that lie in its wheel: nothing is
downloaded. They read Chinese, kana, Latin and Greek letters, in lines and in columns; other scripts (Cyrillic, Hangul,
Thai) come out as nonsense of low confidence, which has no say.

The language is decided line by line:

* Kana make a line Japanese; two of them at least, because a single の is an ornament of Chinese posters too.
* Of characters alone the national standards decide. What GB 2312 or Big5 has and JIS X 0208 lacks is Chinese (们, 邮, 你);
  what only JIS X 0208 has is Japanese (気, 駅, 込). A line without either is Chinese if two of its characters are such
  as only carry grammar, for which Japanese has kana (是, 了, 我). Else (大学, 東京, 中国) it is undecided, unless
  another line of the picture decides.
* Of Latin letters the small words decide (Grefenstette, "Comparing two language identification schemes", 1995). Text
  without any of them, a name say, is undecided.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from anban.audit.finding import Finding, Point, Shape
from anban.audit.picture import Picture
from anban.errors import InputError
from anban.recipe.schema import Count, Share

#: Small words of European languages; English comes first and wins where two have as many.
SMALL_WORDS = {
    "en": "the of and to in is you that it he was for on are as with his they at be this have from or by not but what "
    "all were we when your can there an which their if will do how about up out them then she so these her would him "
    "has more our my me who where just now get off only here",
    "nl": "de het een en van in is dat op te zijn met voor niet die er aan om ook als bij maar naar dan nog uit over",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec vous",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le",
    "it": "di e il la che in un a per è una sono con del da si le non i della dei nel alla più gli ma",
    "pt": "de a o que e do da em um para com não uma os no se na por mais as dos como mas ao das à seu",
}
_SMALL_WORDS = {language: frozenset(words.split()) for language, words in SMALL_WORDS.items()}

_KANA = re.compile("[ぁ-ゖァ-ヺｦ-ﾝ]")
#: Katakana that are drawn like a Chinese character, and are taken for it.
_LIKE_HAN = frozenset("エオカタトニハヒミムメロセ")
_HAN = re.compile("[㐀-䶿一-鿿豈-﫿]")
#: Characters of Chinese grammar that Japanese writes in kana and hardly uses in compounds.
_GRAMMAR = frozenset("的是了我你他她它也就都之而很哪那")
_WORD = re.compile("[A-Za-zÀ-ÖØ-öø-ÿ]{2,}")
#: Pixels that any letter needs.
_LEAST = 8


@dataclass(frozen=True)
class Limits:
    """See limits.yaml."""

    side: Count
    confidence: Share
    letters: Count
    share: Share
    small_words: Share


@dataclass(frozen=True)
class Line:
    """A line (or column) of text.

    Attributes:
        box: its four corners in own pixels of the picture, from the upper left clockwise.
        confidence: of the characters, 0 to 1.
    """

    text: str
    box: tuple[Point, ...]
    confidence: float

    @property
    def letters(self) -> int:
        return sum(character.isalnum() for character in self.text)


def unavailable(limits: Limits) -> None:
    """Nothing but the library can be missing.

    Raises:
        InputError: it is.
    """
    if missing := [name for name in ("rapidocr", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise InputError(
            f"reading text needs {' and '.join(missing)}",
            do=f"pip install {' '.join(missing)}, or leave out the check 'language'",
        )


def check(picture: Picture, limits: Limits) -> list[Finding]:
    """zh_en_text, japanese_text, undecided_text."""
    by_language: dict[str, list[Line]] = {}
    for line in read(picture, limits):
        if line.confidence >= limits.confidence and (script := script_of(line.text)):
            by_language.setdefault(script, []).append(line)
    if latin := by_language.pop("latin", []):
        language = latin_language((line.text for line in latin), limits.small_words)
        by_language[language or "latin"] = latin
    letters = {language: sum(line.letters for line in lines) for language, lines in by_language.items()}
    if "han" in by_language and (deciding := {"zh", "ja"} & letters.keys()):
        language = max(sorted(deciding), key=letters.__getitem__)
        by_language[language] += by_language.pop("han")
        letters[language] += letters.pop("han")
    floor = max(limits.letters, limits.share * sum(letters.values()))
    found: dict[str, list[str]] = {}
    for language in sorted(by_language):
        if letters[language] >= floor:
            found.setdefault(_PROBLEM.get(language, "undecided_text"), []).append(language)
    return [
        _told(problem, languages, [line for each in languages for line in by_language[each]])
        for problem, languages in found.items()
    ]


_PROBLEM = {"zh": "zh_en_text", "en": "zh_en_text", "ja": "japanese_text"}
_NAMES = {
    "zh": "Chinese",
    "en": "English",
    "ja": "Japanese",
    "han": "characters that Chinese and Japanese share",
    "latin": "Latin letters without a small word",
}


def _told(problem: str, languages: list[str], lines: list[Line]) -> Finding:
    confidence = float(np.mean([line.confidence for line in lines]))
    names = " and ".join(_NAMES.get(each, f"Latin letters ({each})") for each in languages)
    longest = max(lines, key=lambda line: line.letters)
    return Finding(
        problem,
        f"{len(lines)} lines, {names}: '{longest.text}'",
        round(confidence, 3),
        tuple(Shape("polygon", line.box, line.text) for line in lines),
        {
            "languages": languages,
            "letters": sum(line.letters for line in lines),
            "confidences": [round(line.confidence, 3) for line in lines],
        },
    )


def read(picture: Picture, limits: Limits) -> list[Line]:
    """The lines of text in a picture; read once, then remembered."""
    if min(picture.rgb.shape[:2]) < _LEAST:
        picture.memo["lines"] = []
    if "lines" not in picture.memo:
        answer = _reader(limits.side)(np.ascontiguousarray(picture.rgb[..., ::-1]))
        told = zip(answer.txts, answer.boxes, answer.scores, strict=True) if answer.txts else ()
        picture.memo["lines"] = [
            Line(text, tuple((float(x), float(y)) for x, y in box / picture.scale), float(score))
            for text, box, score in told
        ]
    return lines_of(picture)


def lines_of(picture: Picture) -> list[Line]:
    """What `read` has read in it; nothing where nobody has asked."""
    lines: list[Line] = picture.memo.get("lines", [])
    return lines


@lru_cache(maxsize=1)
def _reader(side: int) -> Any:
    """The OCR of this process, on one thread: the audit's processes share the cores already."""
    import rapidocr

    models = Path(rapidocr.__file__).parent / "models"
    # With paths given it does not look for other models, so it never goes to the network.
    return rapidocr.RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.text_score": 0.0,  # what it is not sure of is text all the same, in a script it cannot read
            "Global.use_cls": False,
            "Det.model_path": str(next(models.glob("*_det_*.onnx"))),
            "Det.limit_side_len": side,
            "Det.limit_type": "max",
            "Rec.model_path": str(next(models.glob("*_rec_*.onnx"))),
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def script_of(text: str) -> str | None:
    """Of one line: zh, ja, han (undecided between them), latin, or None for neither."""
    kana = sum(1 for character in _KANA.findall(text) if character not in _LIKE_HAN)
    if kana >= 2:
        return "ja"
    han = _HAN.findall(text)
    if len(han) >= 2:
        chinese, japanese = sum(map(_only_chinese, han)), sum(map(_only_japanese, han))
        if chinese == japanese:
            return "zh" if len(_GRAMMAR.intersection(han)) >= 2 else "han"
        return "zh" if chinese > japanese else "ja"
    return "latin" if _WORD.search(text) else None


def latin_language(texts: Iterable[str], share: float) -> str | None:
    """The language whose small words are the most; None where they are less than `share` of all words.

    Args:
        texts: lines in Latin letters.
    """
    words = [word.lower() for text in texts for word in _WORD.findall(text)]
    hits = Counter({name: sum(word in small for word in words) for name, small in _SMALL_WORDS.items()})
    language, most = max(hits.items(), key=lambda hit: hit[1])
    least = 1 if language == "en" else 2  # a single 'no' or 'in' makes no Spanish
    return language if most >= max(least, share * len(words)) else None


@cache
def _standards(character: str) -> frozenset[str]:
    """Which of three character sets of the 1980s, made for everyday text, have it."""

    def has(encoding: str) -> bool:
        try:
            character.encode(encoding)
        except UnicodeEncodeError:
            return False
        return True

    return frozenset(filter(has, ("gb2312", "big5", "shift_jis")))


def _only_chinese(character: str) -> bool:
    return "shift_jis" not in _standards(character) and bool(_standards(character))


def _only_japanese(character: str) -> bool:
    return _standards(character) == {"shift_jis"}
