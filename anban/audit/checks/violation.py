"""Violence and whatever else is forbidden: asked of a classifier that the user brings. Without one nothing is said.

The classifier is an ONNX file, described by a small YAML beside it (`violation.classifier` in the limits names the YAML):

    model: classifier.onnx          # beside the YAML, or an absolute path
    size: [224, 224]                # height and width it wants; the whole picture is scaled to it
    mean: [0.485, 0.456, 0.406]     # subtracted from red, green and blue, which run from 0 to 1
    std: [0.229, 0.224, 0.225]
    answer: softmax                 # of its outputs: softmax (one label holds), sigmoid (each on its own), or none
    labels: [harmless, violence, gore]
    forbidden: {violence: 0.8, gore: 0.8}       # label: score from which it is reported

An image encoder of the CLIP kind (Radford et al., 2021) answers with an embedding instead. Its labels are texts that were
embedded beforehand, one row each; scores are the softmax of the cosines:

    texts: texts.npy                # (labels, width) float; only for encoders
    sharpness: 100                  # by which cosines are multiplied before the softmax, CLIP's logit scale
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anban.audit.finding import Finding
from anban.audit.picture import Picture
from anban.errors import InputError
from anban.recipe.schema import Arguments, Count, Positive, Share, bind, unknown
from anban.recipe.yamlfile import read

Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Limits:
    """See limits.yaml."""

    classifier: str | None


@dataclass(frozen=True)
class Description:
    """What the YAML beside a classifier says; see the module."""

    model: str
    labels: list[str]
    forbidden: dict[str, Share]
    size: tuple[Count, Count] = (224, 224)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    answer: Literal["softmax", "sigmoid", "none"] = "softmax"
    texts: str | None = None
    sharpness: Positive = 100.0


def unavailable(limits: Limits) -> str | None:
    """No classifier is given.

    Raises:
        InputError: it is given and cannot be used.
    """
    if limits.classifier is None:
        return "no classifier is given (violation.classifier)"
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError("The classifier needs onnxruntime.", do="pip install onnxruntime")
    _classifier(limits.classifier)
    return None


def check(picture: Picture, limits: Limits) -> list[Finding]:
    """violation, for every forbidden label whose score is reached."""
    if limits.classifier is None:
        return []
    classifier = _classifier(limits.classifier)
    scores = dict(zip(classifier.description.labels, map(float, classifier(picture)), strict=True))
    return [
        Finding(
            "violation",
            f"the classifier says '{label}' with {scores[label]:.2f} (from {least:.2f} on it is reported)",
            round(scores[label], 4),
            data={"label": label, "scores": {name: round(score, 4) for name, score in scores.items()}},
        )
        for label, least in classifier.description.forbidden.items()
        if scores[label] >= least
    ]


@dataclass(frozen=True)
class Classifier:
    """A picture in, a score of every label out."""

    description: Description
    session: Any
    texts: Scores | None

    def __call__(self, picture: Picture) -> Scores:
        told = self.description
        image = Image.fromarray(picture.rgb).resize((told.size[1], told.size[0]), Image.Resampling.BICUBIC)
        values = (np.asarray(image, np.float32) / 255 - np.array(told.mean)) / np.array(told.std)
        batch = values.transpose(2, 0, 1)[None].astype(np.float32)
        output: Scores = self.session.run(None, {self.session.get_inputs()[0].name: batch})[0][0]
        if self.texts is not None:
            output = told.sharpness * (self.texts @ (output / max(float(np.linalg.norm(output)), 1e-9)))
        if len(output) != len(told.labels):
            raise InputError(
                f"{told.model} has {len(output)} outputs.", expected=f"{len(told.labels)}, one of each label"
            )
        if self.texts is not None or told.answer == "softmax":
            powers = np.exp(output - output.max())
            return np.asarray(powers / powers.sum(), np.float32)
        return np.asarray(1 / (1 + np.exp(-output)), np.float32) if told.answer == "sigmoid" else output


@lru_cache(maxsize=1)
def _classifier(path: str) -> Classifier:
    import onnxruntime

    where = Path(path)
    told = _describe(where)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            where.parent / told.model, options, providers=["CPUExecutionProvider"]
        )
        texts = np.load(where.parent / told.texts).astype(np.float32) if told.texts else None
    except Exception as error:  # onnxruntime has a class of its own for every kind of bad file
        raise InputError(f"The classifier cannot be read: {error}", where=where) from error
    if texts is not None:
        texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    return Classifier(told, session, texts)


def _describe(where: Path) -> Description:
    address = f"{__name__}:{Description.__name__}"
    try:
        bound, _ = bind({"classifier": Arguments(address)}, {"classifier": read(where)})
    except InputError as error:
        raise InputError(error.what, where=f"{where}: {error.where}", expected=error.expected) from error
    told = Description(**bound["classifier"])
    for label in told.forbidden:
        if label not in told.labels:
            raise unknown("label", label, told.labels, where)
    return told
