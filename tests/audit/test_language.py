"""Language of text: by kana, by national character sets, by small words; undecided where nothing tells."""

from __future__ import annotations

import importlib.util
import socket

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from anban.audit.checks import language
from anban.audit.checks.language import Line, check, latin_language, script_of
from anban.audit.limits import read_limits
from anban.errors import InputError
from tests.audit.conftest import picture_of

LIMITS = read_limits()["language"]


def found(*lines: str, confidence: float = 0.95) -> dict[str, list[str]]:
    """Problem -> languages, of a picture in which these lines were read."""
    picture = picture_of(Image.new("RGB", (400, 400), "white"))
    box = ((10.0, 10.0), (90.0, 10.0), (90.0, 30.0), (10.0, 30.0))
    picture.memo["lines"] = [Line(text, box, confidence) for text in lines]
    return {finding.problem: finding.data["languages"] for finding in check(picture, LIMITS)}


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("ポイ捨て禁止!", "ja"),
        ("東京駅前広場", "ja"),  # 駅, 広: simplified in Japan only
        ("正品促销", "zh"),  # 销: simplified in China only
        ("你好嗎", "zh"),
        ("大学中国", "han"),
        ("我是中国人", "zh"),  # 我, 是: Japanese has kana for them
        ("現在不在", "han"),
        ("自然の味", "han"),  # a single kana is an ornament
        ("エ口ニ力トハ", "han"),  # katakana that look like characters decide nothing
        ("NO LITTER", "latin"),
        ("2016 / 38", None),
    ],
)
def test_script_of_a_line(text: str, script: str | None) -> None:
    assert script_of(text) == script


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The remaining fat may be used in place of butter", "en"),
        ("De linzen wassen en in een liter kokend water laten weken", "nl"),
        ("Der Hund und die Katze sind nicht auf dem Tisch", "de"),
        ("EPPING, twinned with Eppingen", "en"),
        ("Natural White", None),
        ("NO LITTER", None),  # Spanish has this word, but one makes no Spanish
    ],
)
def test_small_words_tell_the_language(text: str, expected: str | None) -> None:
    assert latin_language([text], LIMITS.small_words) == expected


def test_characters_that_are_shared_follow_a_line_that_decides() -> None:
    assert found("大学中国", "正品促销") == {"zh_en_text": ["zh"]}
    assert found("大学中国", "きれいな街") == {"japanese_text": ["ja"]}
    assert found("大学中国") == {"undecided_text": ["han"]}


def test_chinese_and_english_together_are_one_finding() -> None:
    assert found("我们的人生", "is a waste of time") == {"zh_en_text": ["en", "zh"]}


def test_what_was_read_without_confidence_has_no_say() -> None:
    assert found("我们的人生", confidence=0.6) == {}


def test_a_stray_line_of_a_long_text_is_a_misreading() -> None:
    assert found(*["中共中央全面深化改革委员会主任" for _ in range(20)], "かな") == {"zh_en_text": ["zh"]}
    assert "japanese_text" in found("我们的人生", "きれいな街")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="rapidocr"):
        language.unavailable(LIMITS)


def test_drawn_text_is_read_where_it_stands_and_nothing_is_downloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("rapidocr", reason="rapidocr is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket, "socket", refuse)
    image = Image.new("RGB", (3000, 1500), "white")  # shrunk to 2048 before it is read
    font = ImageFont.load_default(120)
    ImageDraw.Draw(image).text((900, 600), "The price of the house", fill="black", font=font)
    picture = picture_of(image)
    (finding,) = check(picture, LIMITS)
    assert (finding.problem, finding.data["languages"]) == ("zh_en_text", ["en"])
    corners = np.array([point for shape in finding.evidence for point in shape.points])
    left, top, right, bottom = ImageDraw.Draw(image).textbbox((900, 600), "The price of the house", font=font)
    assert np.abs(corners.min(0) - [left, top]).max() < 60
    assert np.abs(corners.max(0) - [right, bottom]).max() < 60
    assert language.read(picture, LIMITS) is picture.memo["lines"]
