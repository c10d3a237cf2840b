"""The user's own classifier: asked as its description says; without one nothing is said, least of all 'clean'."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from anban.audit.checks.violation import Limits, check, unavailable
from anban.errors import InputError
from tests.audit.conftest import picture_of

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

PURPLE = Image.new("RGB", (60, 40), (255, 0, 204))


def field(number: int, *values: int | str | bytes) -> bytes:
    """Of a protocol buffer: numbers below 128, texts and messages shorter than that."""
    told = b""
    for value in values:
        content = value.encode() if isinstance(value, str) else value
        told += bytes([number << 3, content]) if isinstance(content, int) else b""
        told += bytes([number << 3 | 2, len(content)]) + content if isinstance(content, bytes) else b""
    return told


def tensor(name: str, *shape: int) -> bytes:
    sizes = b"".join(field(1, field(1, side)) for side in shape)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, sizes)))


#: An ONNX model that answers with the mean red, green and blue of a picture of 32 x 16 pixels.
MEANS = (
    bytes([1 << 3, 8])
    + (lambda graph: bytes([7 << 3 | 2, len(graph) & 127 | 128, len(graph) >> 7]) + graph)(
        field(1, field(1, "x") + field(2, "p") + field(4, "GlobalAveragePool"))
        + field(1, field(1, "p") + field(2, "y") + field(4, "Flatten"))
        + field(2, "means")
        + field(11, tensor("x", 1, 3, 32, 16))
        + field(12, tensor("y", 1, 3))
    )
    + field(8, field(2, 13))
)

Describe = Callable[..., Limits]


@pytest.fixture
def described(tmp_path: Path) -> Describe:
    """Writes the model, its description with changes, and the limits that name it."""
    (tmp_path / "means.onnx").write_bytes(MEANS)

    def describe(**changes: Any) -> Limits:
        told = {"model": "means.onnx", "size": [32, 16], "labels": ["red", "green", "blue"], "answer": "none"}
        told = {**told, "forbidden": {"red": 0.9, "blue": 0.9}, **changes}
        where = tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"  # descriptions are kept by their path
        where.write_text(yaml.safe_dump({key: value for key, value in told.items() if value is not None}))
        return Limits(str(where))

    return describe


def test_without_a_classifier_the_check_is_not_run() -> None:
    assert "no classifier" in (unavailable(Limits(None)) or "")
    assert check(picture_of(PURPLE), Limits(None)) == []


def test_what_is_forbidden_is_reported_from_its_own_score(described: Describe) -> None:
    limits = described()
    assert unavailable(limits) is None
    (finding,) = check(picture_of(PURPLE), limits)
    assert (finding.problem, finding.score, finding.data["label"]) == ("violation", 1.0, "red")
    assert finding.data["scores"] == {"red": 1.0, "green": 0.0, "blue": 0.8}
    assert len(check(picture_of(PURPLE), described(forbidden={"red": 0.9, "blue": 0.8}))) == 2


@pytest.mark.parametrize(
    ("answer", "red"), [("softmax", np.e / (np.e + 1 + np.exp(0.8))), ("sigmoid", 1 / (1 + 1 / np.e))]
)
def test_outputs_become_scores(answer: str, red: float, described: Describe) -> None:
    (finding,) = check(picture_of(PURPLE), described(answer=answer, forbidden={"red": 0.1}))
    assert finding.score == pytest.approx(red, abs=1e-4)


def test_pictures_are_normalised_as_the_classifier_wants(described: Describe) -> None:
    limits = described(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.25], forbidden={"red": -0.0})
    (finding,) = check(picture_of(PURPLE), limits)
    assert finding.data["scores"] == pytest.approx({"red": 1, "green": -1, "blue": 1.2}, abs=1e-4)


def test_embeddings_are_compared_with_those_of_the_texts(tmp_path: Path, described: Describe) -> None:
    texts = np.array([[2, 0, 0], [0, 5, 0], [0, 0, 1]], np.float32)
    np.save(tmp_path / "texts.npy", texts)
    limits = described(texts="texts.npy", sharpness=10, forbidden={"red": 0.5})
    (finding,) = check(picture_of(PURPLE), limits)
    cosines = 10 * np.array([1, 0, 0.8]) / np.hypot(1, 0.8)
    assert finding.score == pytest.approx(float(np.exp(cosines[0]) / np.exp(cosines).sum()), abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "missing.onnx"}, "cannot be read"),
        ({"forbidden": {"rde": 0.5}}, "did you mean 'red'"),
        ({"forbidden": {"red": 1.5}}, "forbidden"),
        ({"labels": None}, "labels"),
        ({"lables": ["red"]}, "lables"),
        ({"texts": "missing.npy"}, "cannot be read"),
    ],
)
def test_a_wrong_description_is_refused_before_the_audit(
    changes: dict[str, Any], message: str, described: Describe
) -> None:
    with pytest.raises(InputError, match=message):
        unavailable(described(**changes))


def test_labels_and_outputs_must_be_as_many(described: Describe) -> None:
    with pytest.raises(InputError, match="3 outputs"):
        check(picture_of(PURPLE), described(labels=["red", "blue"]))
