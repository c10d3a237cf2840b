"""Writes a fake study in the record formats: arms, seeds, curves, per-image counts and a few pictured scenes.

The numbers are made, but they hang together: counts come from the pictured probability maps, scores from the counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFilter

PROTOCOL: dict[str, Any] = {
    "name": "whole",
    "split": "test",
    "size": "256x256",
    "tiling": "whole",
    "stride": None,
    "flips": "none",
    "scales": [1.0],
    "classes": ["no change", "change"],
    "ignore": None,
    "threshold": 0.5,
    "data_range": "uint8 0..255",
    "averaging": "micro",
}


@dataclass(frozen=True)
class FakeArm:
    """An arm of the fake study; `skill` 0..1 is how well its maps match the truth."""

    name: str
    title: str
    skill: float
    recipe: str
    difference: dict[str, Any] = field(default_factory=dict)
    parameters: int = 285_128
    macs: int | None = 1_541_000_000
    fails: tuple[int, ...] = ()
    blind: bool = False


DEMO = (
    FakeArm("tinycd", "TinyCD", 0.68, "change/demo-tinycd"),
    FakeArm("gated", "TinyCD, gated fusion", 0.715, "change/demo-tinycd", {"model.fuse": "gated"}, 291_464),
    FakeArm("dice", "TinyCD, Dice loss", 0.682, "change/demo-tinycd", {"loss.dice": 1.0}),
    FakeArm(
        "both",
        "TinyCD, gated + Dice",
        0.72,
        "change/demo-tinycd",
        {"model.fuse": "gated", "loss.dice": 1.0},
        291_464,
        fails=(2,),
    ),
    FakeArm("fcef", "FC-EF & co_50%", 0.6, "change/demo-fcef", {}, 1_350_146, 3_244_000_000),
    FakeArm("siamdiff", "FC-Siam-diff", 0.0, "change/demo-siamdiff", {}, 1_350_146, None, blind=True),
)


def write_fake_study(
    root: Path,
    arms: Sequence[FakeArm] = DEMO,
    *,
    seeds: int = 3,
    images: int = 12,
    pictured: int = 4,
    size: int = 96,
    steps: int = 400,
) -> Path:
    """Writes run folders and studies/demo/study.json under `root`; gives the path of study.json."""
    scenes = [_scene(index, size) for index in range(images)]
    folder = root / "studies" / "demo"
    entries = []
    for arm in arms:
        runs = []
        for seed in range(seeds):
            path = _write_run(root, arm, seed, scenes, pictured, steps)
            failed = seed in arm.fails
            why = "The loss became NaN at step 212 (batch train_07.png, train_31.png)." if failed else None
            runs.append(
                {
                    "seed": seed,
                    "path": f"../../{path}",
                    "state": "failed" if failed else "finished",
                    "why": why,
                }
            )
        entries.append(
            {
                "name": arm.name,
                "title": arm.title,
                "recipe": arm.recipe,
                "difference": arm.difference,
                "runs": runs,
            }
        )
    document = {
        "format": "anban-study/1",
        "id": "change/demo",
        "title": "Does gated fusion help a tiny change detector?",
        "question": "At equal training and the same seeds, does gating the two dates' features beat concatenation, "
        "and does a Dice term add to it?",
        "created": "2026-11-20T10:00:00Z",
        "split": "test",
        "protocol": "whole",
        "metric": "f1",
        "base": arms[0].name,
        "arms": entries,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "study.json", document)
    return folder / "study.json"


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Replaces top-level keys of a JSON file."""
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


def scores_of(tn: int, fp: int, fn: int, tp: int) -> dict[str, float | None]:
    """The seven change scores of one confusion matrix, None where a denominator is 0."""

    def ratio(top: float, bottom: float) -> float | None:
        return top / bottom if bottom else None

    total = tn + fp + fn + tp
    iou, other = ratio(tp, tp + fp + fn), ratio(tn, tn + fp + fn)
    chance = ((tn + fp) * (tn + fn) + (fn + tp) * (fp + tp)) / total**2
    return {
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "iou": iou,
        "oa": (tp + tn) / total,
        "kappa": ratio((tp + tn) / total - chance, 1 - chance),
        "miou": None if iou is None or other is None else (iou + other) / 2,
    }


def _scene(index: int, size: int) -> dict[str, Any]:
    """Two dates of invented houses on fields, and the truth: houses that appeared or vanished."""
    draw_from = np.random.default_rng(1000 + index)
    ground = np.zeros((size, size, 3), dtype=np.float32)
    ground[:] = draw_from.choice([[116, 128, 92], [148, 138, 112], [104, 116, 98]])
    for _ in range(5):  # fields
        x, y = draw_from.integers(-size // 4, size, 2)
        w, h = draw_from.integers(size // 4, size, 2)
        ground[max(y, 0) : y + h, max(x, 0) : x + w] += draw_from.normal(0, 14, 3)
    noise = Image.fromarray(draw_from.integers(0, 255, (size, size), dtype=np.uint8)).filter(
        ImageFilter.GaussianBlur(1.2)
    )
    ground += (np.asarray(noise, dtype=np.float32)[..., None] - 127) * 0.55
    before = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    ImageDraw.Draw(before).line(
        [(0, int(draw_from.integers(size))), (size, int(draw_from.integers(size)))],
        fill=(168, 166, 160),
        width=max(3, size // 18),
    )
    after = before.copy()
    label = Image.new("L", (size, size), 0)
    for number in range(7):
        x, y = draw_from.integers(2, size - size // 5, 2)
        w, h = draw_from.integers(size // 10, size // 4, 2)
        box = [int(x), int(y), int(x + w), int(y + h)]
        roof = tuple(int(v) for v in draw_from.choice([[176, 92, 74], [196, 190, 184], [122, 128, 142]]))
        shade = [box[0] + 2, box[1] + 2, box[2] + 2, box[3] + 2]
        appears = number < 3 and index != images_without_change
        for picture in [after] if appears else [before, after]:
            ImageDraw.Draw(picture).rectangle(shade, fill=(58, 60, 56))
            ImageDraw.Draw(picture).rectangle(box, fill=roof)
        ImageDraw.Draw(label).rectangle(box, fill=255 if appears else 0)
    light = draw_from.normal(1.0, 0.08, 3)
    after = Image.fromarray(np.clip(np.asarray(after, dtype=np.float32) * light, 0, 255).astype(np.uint8))
    return {"name": f"test_{index + 1:02d}.png", "a": before, "b": after, "label": label}


images_without_change = 3  # one scene has no change at all: its F1 is undefined or 0


def _probability(scene: dict[str, Any], arm: FakeArm, seed: int, index: int) -> Image.Image:
    """A smoothed, noisy version of the truth: the more skill, the less noise."""
    label = np.asarray(scene["label"], dtype=np.float32) / 255
    if arm.blind:
        return Image.fromarray(np.full(label.shape, 8, dtype=np.uint8))
    # The part of the noise shared by all arms makes hard scenes hard for everyone.
    shared = np.random.default_rng(index).normal(0, 1, label.shape)
    own = np.random.default_rng([index, seed, *arm.name.encode()]).normal(0, 1, label.shape)
    noise = np.asarray(
        Image.fromarray((np.clip(shared * 0.6 + own * 0.8, -4, 4) * 30 + 128).astype(np.uint8)).filter(
            ImageFilter.GaussianBlur(label.shape[0] / 28)
        ),
        dtype=np.float32,
    )
    noise = (noise - noise.mean()) / noise.std()
    soft = np.asarray(scene["label"].filter(ImageFilter.GaussianBlur(1.5)), dtype=np.float32) / 255
    logit = (soft - 0.5) * 9 + noise * (1 - arm.skill) * 6.5 - 0.3
    return Image.fromarray(np.round(255 / (1 + np.exp(-logit))).astype(np.uint8))


def _write_run(
    root: Path, arm: FakeArm, seed: int, scenes: list[dict[str, Any]], pictured: int, steps: int
) -> str:
    tail = f"{abs(hash_of(arm.name, seed)):04x}"[:4]
    run_id = f"20261120-10{len(arm.name):02d}{10 + seed}-s{seed}-{tail}"
    # An arm with a difference shares its recipe's folder with the base, as real runs do.
    relative = f"{arm.recipe}/{run_id}"
    folder = root / relative
    (folder / "figures" / "samples").mkdir(parents=True)
    failed = seed in arm.fails
    totals = dict.fromkeys(("tn", "fp", "fn", "tp"), 0)
    lines, index = [], []
    for number, scene in enumerate(scenes if not failed else []):
        probability = _probability(scene, arm, seed, number)
        label = np.asarray(scene["label"]) > 0
        change = np.asarray(probability) / 255 > PROTOCOL["threshold"]
        counts = {
            "tn": int((~change & ~label).sum()),
            "fp": int((change & ~label).sum()),
            "fn": int((~change & label).sum()),
            "tp": int((change & label).sum()),
        }
        totals = {key: totals[key] + counts[key] for key in totals}
        lines.append(
            {
                "split": "test",
                "protocol": "whole",
                "checkpoint": "best",
                "name": scene["name"],
                "counts": counts,
                "scores": scores_of(**counts),
            }
        )
        if number < pictured:
            place = folder / "figures" / "samples" / Path(scene["name"]).stem
            place.mkdir()
            scene["a"].save(place / "a.png")
            scene["b"].save(place / "b.png")
            scene["label"].save(place / "label.png")
            probability.save(place / "probability.png")
            index.append({"name": scene["name"], "folder": place.name})
    write_json(
        folder / "figures" / "samples" / "index.json",
        {"threshold": PROTOCOL["threshold"], "protocol": "whole", "samples": index},
    )
    (folder / "samples.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    scores = {} if failed else scores_of(**totals)
    _write_curves(folder, arm, seed, steps if not failed else steps // 2, scores.get("f1"))
    (folder / "log.txt").write_text("a fake run\n", encoding="utf-8")
    recipe = {
        "id": arm.recipe,
        "title": arm.title,
        "seed": seed,
        "model": {"name": arm.recipe.replace("demo-", ""), "fuse": "concat", "width": 32},
        "loss": {"bce": 1.0, "dice": 0.0},
        "optim": {"name": "adamw", "rate": 0.003, "weight_decay": 0.01},
        "train": {"steps": steps, "batch": 8, "crop": 256},
    }
    for key, value in arm.difference.items():
        section, name = key.split(".")
        recipe[section] = {**recipe[section], name: value}  # type: ignore[dict-item]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    write_json(folder / "run.json", _run_json(arm, seed, run_id, scores, steps, failed, len(scenes)))
    return relative


def hash_of(name: str, seed: int) -> int:
    """A small stable number for run ids (Python's own hash changes from process to process)."""
    value = 2166136261
    for byte in f"{name}-{seed}".encode():
        value = (value ^ byte) * 16777619 % 2**32
    return value


def _write_curves(folder: Path, arm: FakeArm, seed: int, steps: int, final: float | None) -> None:
    draw_from = np.random.default_rng([seed, *arm.name.encode()])
    floor, speed = 0.08 + 0.2 * (1 - arm.skill), 55 + 50 * (1 - arm.skill)
    lines = []

    def add(step: int, split: str, protocol: str | None, name: str, value: float | None) -> None:
        lines.append(
            {
                "step": step,
                "epoch": round(step / 5, 2),
                "split": split,
                "protocol": protocol,
                "name": name,
                "value": value,
                "time": step * 0.4,
            }
        )

    for step in range(2, steps + 1, 2):
        loss = (floor + 0.62 * np.exp(-step / speed)) * float(np.exp(draw_from.normal(0, 0.14)))
        add(step, "train", None, "loss", loss)
        add(step, "train", None, "lr", 0.003 * min(1.0, step / 20) * (1 - step / (steps * 1.02)) ** 0.9)
        if step % 20 == 0:
            top = 0.0 if final is None else final
            value = (
                None
                if arm.blind
                else max(0.0, top * (1 - np.exp(-step / speed)) + draw_from.normal(0, 0.012))
            )
            add(step, "val", "whole", "f1", value)
            add(step, "val", "whole", "loss", loss * 1.1)
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )


def _run_json(
    arm: FakeArm,
    seed: int,
    run_id: str,
    scores: dict[str, float | None],
    steps: int,
    failed: bool,
    images: int,
) -> dict[str, Any]:
    fps = 48.0 / (1 + arm.parameters / 1e6) + 0.37 * seed
    return {
        "format": "anban-run/1",
        "id": run_id,
        "recipe": arm.recipe,
        "title": arm.title,
        "task": "change",
        "hash": f"{hash_of(arm.name, 99):08x}c0de",
        "base": None,
        "difference": arm.difference,
        "state": "failed" if failed else "finished",
        "why": "The loss became NaN at step 212 (batch train_07.png, train_31.png)." if failed else None,
        "seed": seed,
        "started": "2026-11-20T10:00:00Z",
        "ended": "2026-11-20T10:03:00Z",
        "seconds": 171.4 + seed,
        "commit": "3f1c2ab9d0e4",
        "environment": {
            "python": "3.11.7",
            "torch": "2.14.1",
            "platform": "Linux-6.1-x86_64",
            "packages": {"numpy": "2.4.6", "torchvision": "0.29.1", "timm": "1.0.30"},
        },
        "device": "cpu",
        "host": "bench-03",
        "pid": 4242,
        "command": f"anban study change/demo --seeds 3  # {arm.name}, seed {seed}",
        "data": {
            "root": "/data/anban-demo",
            "fingerprint": "8d1f00c3b7aa",
            "labels": "0/255",
            "splits": {"train": 37, "val": 14, "test": images},
        },
        "model": {"name": arm.recipe.replace("demo-", ""), "parameters": arm.parameters},
        "efficiency": {
            "input": "2 x 1x3x256x256",
            "parameters": arm.parameters,
            "macs": arm.macs,
            "flops": None if arm.macs is None else 2 * arm.macs + 31_000_000,
            "fps": fps,
            "latency_ms": {"p50": 1000 / fps, "p95": 1180 / fps},
            "peak_memory_mb": 412.5 + arm.parameters / 1e5,
            "device": "CPU, 2 cores",
            "precision": "fp32",
            "batch": 1,
            "uncounted": ["aten::grid_sampler_2d"] if arm.macs is None else [],
        },
        "progress": {
            "step": steps // 2 if failed else steps,
            "steps": steps,
            "epoch": steps / 5,
            "best": None
            if failed or scores["f1"] is None
            else {
                "step": steps - 40,
                "split": "val",
                "protocol": "whole",
                "name": "f1",
                "value": scores["f1"],
            },
            "last_rise": steps - 40,
            "rate_changes": [],
            "rate_changed": None,
        },
        "time": {
            "seconds_per_step": 0.41,
            "seconds_per_epoch": 2.05,
            "data_wait_share": 0.06,
            "peak_memory_mb": 1210.0,
        },
        "protocols": {"test/whole": PROTOCOL},
        "scores": [
            {"split": "test", "protocol": "whole", "checkpoint": "best", "name": name, "value": value}
            for name, value in scores.items()
        ],
    }
