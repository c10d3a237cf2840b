"""Writes a fake study of class maps in the record formats: summed confusion matrices, pictures and expectations.

As in `fake_study` the numbers are made, but hang together: matrices come from the pictured maps, scores from the matrices.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fake_study import hash_of, write_json
from PIL import Image, ImageDraw, ImageFilter

from anban.metrics import class_scores

IGNORE = 255
STREET = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
COLOURS = [
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
    (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
]  # fmt: skip


@dataclass(frozen=True)
class ClassArm:
    """An arm; `skill` 0..1 is how much of its maps is right, and a `blind` one predicts the first class everywhere."""

    name: str
    title: str
    skill: float
    difference: dict[str, Any] = field(default_factory=dict)
    expected: dict[str, Any] | None = None
    blind: bool = False


ARMS = (
    ClassArm("ushape", "U-shape", 0.90),
    ClassArm("ffm", "with FFM", 0.94, {"model.join": "ffm"}, {"gain": 1.4, "over": "ushape", "source": "line 318"}),
    ClassArm("arm", "with FFM and ARM", 0.945, {"model.join": "ffm", "model.arm": True},
             {"gain": 60.0, "over": "ffm", "source": "note, line 349"}),
)  # fmt: skip


def write_class_study(
    root: Path,
    arms: Sequence[ClassArm] = ARMS,
    *,
    classes: int = 5,
    seeds: int = 2,
    images: int = 6,
    pictured: int = 2,
    size: tuple[int, int] = (48, 96),
) -> Path:
    """Writes run folders and studies/demo/study.json under `root`; gives the path of study.json."""
    folder = root / "studies" / "demo"
    scenes = [_scene(index, classes, size) for index in range(images)]
    entries = []
    for arm in arms:
        runs = [
            {"seed": seed, "path": f"../../{_write_run(root, arm, seed, scenes, classes, pictured)}",
             "state": "finished", "why": None}
            for seed in range(seeds)
        ]  # fmt: skip
        entries.append({"name": arm.name, "title": arm.title, "recipe": "seg/bisenet", "difference": arm.difference,
                        "expected": arm.expected, "runs": runs})  # fmt: skip
    folder.mkdir(parents=True)
    write_json(folder / "study.json", {
        "format": "anban-study/1", "id": "seg/demo", "title": "Does attention help a U?", "question": "FFM, then ARM?",
        "split": "val", "protocol": "ss", "metric": "", "base": arms[0].name, "arms": entries,
    })  # fmt: skip
    return folder / "study.json"


def _scene(index: int, classes: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W, 3) and its labels (H, W), with an ignored frame at the bottom."""
    draw_from = np.random.default_rng(index)
    height, width = size
    label = Image.new("L", (width, height), 0)
    for number in draw_from.permutation(4 * classes):
        x, y = int(draw_from.integers(width)), int(draw_from.integers(height))
        w, h = (int(draw_from.integers(side // 8, side // 3)) for side in (width, height))
        ImageDraw.Draw(label).ellipse([x - w, y - h, x + w // 2, y + h // 2], fill=int(number) % classes)
    numbers = np.asarray(label).copy()
    colours = np.asarray(COLOURS, dtype=np.float64)[numbers] * 0.5 + 70
    noise = draw_from.normal(0, 14, (height, width, 3))
    image = np.clip(colours + noise, 0, 255).astype(np.uint8)
    numbers[-height // 12 :] = IGNORE
    return image, numbers


def _prediction(label: np.ndarray, arm: ClassArm, seed: int, index: int, classes: int) -> np.ndarray:
    """The labels, where noise that is partly shared by all arms does not put another class."""
    if arm.blind:
        return np.zeros_like(label)
    draw_from = np.random.default_rng([index, seed, *arm.name.encode()])
    shared = np.random.default_rng([7, index]).normal(0, 1, label.shape)
    noise = 128 + 60 * (shared + 0.7 * draw_from.normal(0, 1, label.shape))
    smooth = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
    ranks = np.asarray(smooth, dtype=np.float64)
    wrong = ranks > np.quantile(ranks, arm.skill)
    known = np.where(label == IGNORE, 0, label)
    return np.where(wrong, (known + 1 + (index + seed) % 2) % classes, known).astype(np.uint8)


def _write_run(root: Path, arm: ClassArm, seed: int, scenes: list[Any], classes: int, pictured: int) -> str:
    run_id = f"20261121-1000{10 + seed}-s{seed}-{hash_of(arm.name, seed) % 65536:04x}"
    relative = f"seg/bisenet/{run_id}"
    folder = root / relative
    samples = folder / "figures" / "samples"
    samples.mkdir(parents=True)
    place = {"split": "val", "protocol": "ss", "checkpoint": "best"}
    total, lines, index = np.zeros((classes, classes), dtype=np.int64), [], []
    for number, (image, label) in enumerate(scenes):
        prediction = _prediction(label, arm, seed, number, classes)
        counted = label != IGNORE
        code = label[counted].astype(int) * classes + prediction[counted]
        matrix = np.bincount(code, minlength=classes**2).reshape(classes, classes)
        total += matrix
        name = f"street_{number}.png"
        lines.append({**place, "name": name, "confusion": matrix.tolist(), "scores": _scores(matrix)})
        if number < pictured:
            (samples / f"street_{number}").mkdir()
            Image.fromarray(image).save(samples / f"street_{number}" / "image.png")
            for stem, numbers in (("label", label), ("prediction", prediction)):
                indexed = Image.fromarray(numbers, mode="P")
                # All 256 colours: with fewer the file would have too few bits for the ignored number.
                indexed.putpalette(
                    [v for colour in COLOURS[:classes] for v in colour] + [0] * 3 * (256 - classes)
                )
                indexed.save(samples / f"street_{number}" / f"{stem}.png")
            index.append({"name": name, "folder": f"street_{number}"})
    write_json(samples / "index.json", {
        "view": "classes", "classes": STREET[:classes], "palette": COLOURS[:classes], "ignore": IGNORE,
        "protocol": "ss", "split": "val", "samples": index,
    })  # fmt: skip
    (folder / "samples.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    recipe: dict[str, Any] = {"model": {"name": "seg/bisenet", "join": "sum", "arm": False}}
    for key, value in arm.difference.items():
        recipe["model"][key.split(".")[1]] = value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    curve = [{"step": 10 * k, "epoch": 1.0, "split": "val", "protocol": "ss", "name": "miou", "time": 1.0,
              "value": arm.skill * (1 - 0.5**k)} for k in range(1, 9)]  # fmt: skip
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in curve), encoding="utf-8"
    )
    write_json(folder / "run.json", {
        "format": "anban-run/1", "id": run_id, "recipe": "seg/bisenet", "title": arm.title, "task": "segment",
        "select": "miou", "hash": f"{hash_of(arm.name, 99):08x}c0de", "base": None, "difference": arm.difference,
        "state": "finished", "why": None, "seed": seed, "commit": "3f1c2ab9d0e4", "device": "cpu",
        "data": {"root": "/data/street", "fingerprint": "8d1f00c3b7aa", "splits": {"train": 37, "val": len(scenes)}},
        "protocols": {"val/ss": {
            "name": "ss", "split": "val", "size": "48x96", "tiling": "whole", "stride": None, "flips": "none",
            "scales": [1.0], "rule": "softmax", "classes": STREET[:classes], "ignore": IGNORE, "averaging": "micro",
        }},
        "scores": [{**place, "name": name, "value": value} for name, value in _scores(total).items()],
    })  # fmt: skip
    return relative


def _scores(matrix: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in class_scores(matrix).items()}
