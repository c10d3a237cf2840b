"""Augmentations move both dates and the label alike; protocols put a scene together as their name says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from anban.data.augment import build_augment
from anban.data.draws import derive, drawing_from
from anban.errors import InputError
from anban.tasks.change.protocols import Protocol, apply_protocol, parse_protocol
from anban.tasks.change.transforms import AUGMENT_SECTION, AUGMENTS

GEOMETRY: dict[str, dict[str, Any]] = {
    "flip": {"horizontal": 0.5, "vertical": 0.5},
    "rotate90": {"p": 0.8},
    "crop": {"size": 12},
    "resize": {"size": 24},
}
EVERY = GEOMETRY | {
    "scale": {"ratio": [0.7, 1.5]},
    "swap": {},
    "photometric": {"hue": 0.1},
    "blur": {"p": 1.0},
    "shift": {"pixels": 3, "p": 1.0},
    "erase": {"p": 1.0},
}


def sample_of(label: np.ndarray | torch.Tensor) -> dict[str, Any]:
    """Both dates drawn from the label: a is 200 where it changed, b the opposite."""
    mask = torch.as_tensor(label, dtype=torch.uint8)
    a = (mask * 200).expand(3, *mask.shape).contiguous()
    b = ((1 - mask) * 200).expand(3, *mask.shape).contiguous()
    return {"a": tv_tensors.Image(a), "b": tv_tensors.Image(b), "label": tv_tensors.Mask(mask)}


def blocks(height: int = 24, width: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (height, width), dtype=np.uint8)


def drawn(config: dict[str, Any], sample: dict[str, Any], epoch: int) -> dict[str, Any]:
    with drawing_from(derive(0, "augment", epoch, 0)):
        return build_augment(config, AUGMENT_SECTION)(sample)


@pytest.mark.parametrize("name", GEOMETRY)
@pytest.mark.parametrize("epoch", range(6))
def test_exact_geometry_is_the_same_for_all_three(name: str, epoch: int) -> None:
    got = drawn({name: GEOMETRY[name]}, sample_of(blocks(20, 20) if name != "resize" else blocks()), epoch)
    label = got["label"].as_subclass(torch.Tensor)
    assert torch.equal(got["a"].as_subclass(torch.Tensor), (label * 200).expand(3, *label.shape))
    assert torch.equal(got["b"].as_subclass(torch.Tensor), ((1 - label) * 200).expand(3, *label.shape))


@pytest.mark.parametrize("epoch", range(6))
def test_resampled_geometry_is_the_same_for_all_three(epoch: int) -> None:
    """Large blocks: apart from blurred borders, the dates still tell the label."""
    label = np.kron(blocks(4, 4, seed=epoch), np.ones((16, 16), np.uint8))
    got = drawn({"scale": {"ratio": [0.6, 1.7]}, "crop": {"size": 48}, "flip": {}}, sample_of(label), epoch)
    told = (got["a"][0] > 100).to(torch.uint8)
    assert got["a"].shape == (3, 48, 48)
    assert (told == got["label"]).float().mean() > 0.95
    assert ((got["b"][0] <= 100).to(torch.uint8) == got["label"]).float().mean() > 0.95
    assert set(got["label"].unique().tolist()) <= {0, 1}


@pytest.mark.parametrize("name", AUGMENTS)
def test_every_step_draws_from_the_seed_and_spares_its_input(name: str) -> None:
    config = {name: EVERY[name]} | ({"crop": {"size": 20}} if name == "scale" else {})
    noise = np.random.default_rng(1).integers(0, 256, (2, 3, 24, 24), dtype=np.uint8)
    sample = sample_of(blocks())
    sample["a"], sample["b"] = (tv_tensors.Image(torch.from_numpy(x.copy())) for x in noise)
    kept = {key: value.clone() for key, value in sample.items()}
    results = [drawn(config, sample, epoch) for epoch in range(8)]
    for key, value in kept.items():
        assert torch.equal(sample[key], value), key
    for key, value in drawn(config, sample, 3).items():
        assert torch.equal(value, results[3][key]), key
        assert value.dtype == torch.uint8
    assert results[0].keys() == {"a", "b", "label"}
    different = {tuple(r["a"].flatten().tolist()) for r in results}
    assert len(different) > 1 or name == "resize"
    unlabelled = drawn(config, {"a": sample["a"], "b": sample["b"]}, 3)
    if name != "crop":
        assert torch.equal(unlabelled["a"], results[3]["a"])


def test_each_date_has_its_own_light() -> None:
    sample = sample_of(blocks())
    sample["b"] = sample["a"]
    for name in ("photometric", "blur"):
        got = drawn({name: EVERY[name]}, sample, 0)
        assert not torch.equal(got["a"], got["b"])
        assert torch.equal(got["label"], sample["label"])


def test_swap_and_shift() -> None:
    sample = sample_of(blocks())
    swapped = drawn({"swap": {"p": 1.0}}, sample, 0)
    assert torch.equal(swapped["a"], sample["b"])
    assert torch.equal(swapped["b"], sample["a"])
    moved = set()
    for epoch in range(12):
        got = drawn({"shift": {"pixels": 2, "p": 1.0}}, sample, epoch)
        still = [date for date in ("a", "b") if torch.equal(got[date], sample[date])]
        moved |= {"a", "b"} - set(still)
        assert still
        assert torch.equal(got["label"], sample["label"])
        for date in {"a", "b"} - set(still):
            inner = got[date][:, 2:-2, 2:-2]
            places = [(top, left) for top in range(5) for left in range(5)]
            assert any(torch.equal(inner, sample[date][:, y : y + 20, x : x + 20]) for y, x in places)
    assert moved == {"a", "b"}


def test_crop_keeps_change_when_asked_and_mirrors_what_is_too_small() -> None:
    label = np.zeros((64, 64), np.uint8)
    label[:20, :20] = 1
    kept = [
        drawn({"crop": {"size": 16, "keep_change": True, "tries": 100}}, sample_of(label), e)
        for e in range(20)
    ]
    free = [drawn({"crop": {"size": 16}}, sample_of(label), e) for e in range(20)]
    assert all(x["label"].any() for x in kept)
    assert not all(x["label"].any() for x in free)
    small = drawn({"crop": {"size": 10}}, sample_of(blocks(6, 12)), 0)
    assert small["label"].shape == (10, 10)
    assert torch.equal(small["label"][6:], small["label"][1:5].flip(0))


def test_erase_leaves_no_change_where_it_blacks_out() -> None:
    sample = sample_of(np.ones((30, 30), np.uint8))
    sample["b"] = sample["a"]
    got = drawn({"erase": {"area": [0.1, 0.2], "p": 1.0}}, sample, 0)
    gone = got["label"] == 0
    assert 0.05 < gone.float().mean() < 0.3
    assert torch.equal(gone, got["a"][0] == 0)
    assert torch.equal(gone, got["b"][0] == 0)


def test_rotation_keeps_the_shape_of_a_picture_that_is_not_square() -> None:
    for epoch in range(6):
        assert drawn({"rotate90": {"p": 1.0}}, sample_of(blocks(8, 14)), epoch)["label"].shape == (8, 14)


def test_order_is_the_table_s_and_null_removes() -> None:
    augment = build_augment({"erase": {}, "flip": {}, "swap": None, "crop": {"size": 8}}, AUGMENT_SECTION)
    assert list(augment.steps) == ["crop", "flip", "erase"]
    assert build_augment({}, AUGMENT_SECTION).steps == {}


@pytest.mark.parametrize(
    ("config", "fragments"),
    [
        ({"flipp": {}}, ["'flipp'", "did you mean 'flip'"]),
        ({"flip": {"horizontl": 1}}, ["augment.flip.horizontl", "did you mean 'augment.flip.horizontal'"]),
        ({"flip": {"vertical": 1.5}}, ["augment.flip.vertical", "1.5", "at most 1"]),
        ({"crop": {}}, ["augment.crop", "size"]),
        ({"scale": {}}, ["augment.scale", "crop"]),
        ({"scale": {"ratio": [2, 1]}, "crop": {"size": 4}}, ["augment.scale", "ratio (2.0, 1.0)"]),
        ({"blur": {"sigma": [0, 1]}}, ["augment.blur", "sigma"]),
        ({"erase": {"area": [0.5, 2]}}, ["augment.erase", "area"]),
        ({"photometric": {"hue": 0.9}}, ["augment.photometric", "hue"]),
    ],
)
def test_wrong_sections_are_refused(config: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        build_augment(config, AUGMENT_SECTION)
    for fragment in fragments:
        assert fragment in str(caught.value)


# Protocols --------------------------------


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("whole", Protocol("whole", "whole")),
        ("tiles-512", Protocol("tiles-512", "tiles", 512, 512)),
        ("sliding", Protocol("sliding-256-128", "sliding", 256, 128)),
        ("sliding-64-16+flip", Protocol("sliding-64-16+flip", "sliding", 64, 16, True)),
        ("whole+flip", Protocol("whole+flip", "whole", flips=True)),
    ],
)
def test_protocol_names(name: str, protocol: Protocol) -> None:
    assert parse_protocol(name) == protocol
    assert parse_protocol(protocol.name) == protocol


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("hole", "did you mean 'whole'?"),
        ("slidng-256-128", "did you mean 'sliding-256-128'?"),
        ("tiles", "did you mean 'tiles-256'?"),
        ("whole+flp", "did you mean 'whole+flip'?"),
        ("whole+", "unknown protocol 'whole+'"),
        ("sliding-128-256", "without a prediction"),
        ("tiles-0", "without a prediction"),
        ("", "unknown protocol ''"),
    ],
)
def test_unknown_protocols_are_refused(name: str, fragment: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_protocol(name)
    assert fragment in str(caught.value)


def test_stamp() -> None:
    stamp = parse_protocol("whole").to_dict("test", size="256x256")
    assert stamp == {
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
    tiled = json.loads(json.dumps(parse_protocol("sliding+flip").to_dict("val", "1024x1024", threshold=0.4)))
    assert (tiled["size"], tiled["stride"], tiled["threshold"]) == ("256x256", 128, 0.4)
    assert tiled["flips"] != "none"


def gap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).abs().mean(dim=1, keepdim=True)


@pytest.mark.parametrize(
    "name", ["whole", "tiles-16", "sliding-16-5", "whole+flip", "sliding-16-8+flip", "tiles-64"]
)
def test_a_pixelwise_network_sees_no_protocol(name: str) -> None:
    a, b = torch.rand(2, 2, 3, 20, 35)
    got = apply_protocol(parse_protocol(name), gap, a, b)
    assert got.shape == (2, 1, 20, 35)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, gap(a, b))


def test_flips_are_averaged_in_place() -> None:
    """A predictor that answers with the column number, whatever it sees: by hand the mean of c and 3 - c."""

    def columns(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(a.shape[-2])[:, None] * 10.0
        return (rows + torch.arange(a.shape[-1])).expand(len(a), 1, -1, -1)

    a = torch.zeros(1, 3, 3, 4)
    got = apply_protocol(parse_protocol("whole+flip"), columns, a, a)
    torch.testing.assert_close(got, torch.full((1, 1, 3, 4), 10 + 1.5))
    torch.testing.assert_close(
        apply_protocol(parse_protocol("whole"), columns, a, a)[0, 0, 0], torch.arange(4.0)
    )
