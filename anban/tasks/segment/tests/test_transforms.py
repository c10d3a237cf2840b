"""Augmentation of a picture and its label: scale, crop, flip, and the debug sizes of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import tv_tensors

from anban.data.augment import build_augment
from anban.data.draws import drawing_from
from anban.errors import InputError
from anban.tasks.segment.classes import IGNORE
from anban.tasks.segment.debug import debug
from anban.tasks.segment.transforms import AUGMENT_SECTION, AUGMENTS, Crop, Flip, Scale

Sample = dict[str, Any]


def sample(height: int = 12, width: int = 20) -> Sample:
    """A picture whose first channel is its label."""
    label = torch.arange(height * width, dtype=torch.uint8).reshape(height, width) % 19
    image = torch.stack([label, torch.full_like(label, 100), torch.full_like(label, 200)])
    return {"image": tv_tensors.Image(image), "label": tv_tensors.Mask(label), "name": "x"}


def test_a_crop_keeps_picture_and_label_together() -> None:
    with drawing_from(1):
        corners = set()
        for _ in range(20):
            cut = Crop((6, 8))(sample())
            assert cut["label"].shape == (6, 8)
            assert torch.equal(cut["image"][0], cut["label"])
            corners.add(int(cut["label"][0, 0]))
    assert len(corners) > 5


@pytest.mark.parametrize(("fill", "colour"), [("black", [0, 0, 0]), ("mean", [8, 100, 200])])
def test_a_smaller_picture_lies_in_the_middle_and_what_surrounds_it_is_ignored(
    fill: Any, colour: list[int]
) -> None:
    given = sample(4, 6)
    cut = Crop((8, 7), fill=fill)(given)
    assert torch.equal(cut["label"][2:6, :6], given["label"])
    assert torch.equal(cut["image"][:, 2:6, :6], given["image"])
    outside = torch.ones(8, 7, dtype=torch.bool)
    outside[2:6, :6] = False
    assert (cut["label"][outside] == IGNORE).all()
    assert (cut["image"][:, outside] == torch.tensor(colour)[:, None]).all()


def test_a_crop_avoids_places_of_one_class_as_long_as_it_may_try() -> None:
    label = torch.zeros(8, 64, dtype=torch.uint8)
    label[:, 40:48] = 1
    label[:, 48:] = IGNORE
    given = {
        "image": tv_tensors.Image(torch.zeros(3, 8, 64, dtype=torch.uint8)),
        "label": tv_tensors.Mask(label),
    }

    def mixed(crop: Crop) -> float:
        with drawing_from(3):
            return sum(crop(given)["label"].unique().tolist()[:2] == [0, 1] for _ in range(40)) / 40

    assert mixed(Crop(8)) < 0.4
    assert mixed(Crop(8, category_max_share=0.9, tries=40)) > 0.8


def test_a_crop_needs_no_label() -> None:
    cut = Crop(8, category_max_share=0.5)({"image": sample()["image"], "name": "x"})
    assert cut["image"].shape == (3, 8, 8)
    assert "label" not in cut


def test_a_scale_is_one_of_the_factors_or_anything_in_the_range() -> None:
    with drawing_from(0):
        listed = {tuple(Scale(factors=[0.5, 1.0, 2.0])(sample())["label"].shape) for _ in range(40)}
        drawn = {Scale((0.5, 1.5))(sample())["image"].shape[-1] for _ in range(40)}
    assert listed == {(6, 10), (12, 20), (24, 40)}
    assert 10 <= min(drawn) < max(drawn) <= 30
    assert len(drawn) > 8


def test_a_label_is_never_mixed_of_two_classes() -> None:
    label = torch.where(torch.arange(20) < 10, 3, 17).to(torch.uint8).expand(12, 20)
    given = sample() | {"label": tv_tensors.Mask(label)}
    with drawing_from(0):
        assert set(Scale((1.3, 1.7))(given)["label"].unique().tolist()) == {3, 17}


def test_streets_are_mirrored_left_right_only() -> None:
    given = sample()
    turned = Flip(horizontal=1.0)(given)
    assert torch.equal(turned["image"], given["image"].flip(-1))
    assert torch.equal(turned["label"], given["label"].flip(-1))
    assert torch.equal(Flip(horizontal=0.0)(given)["image"], given["image"])


def test_the_official_order_is_kept_whatever_the_order_in_a_recipe() -> None:
    augment = build_augment(
        {"jitter": {}, "flip": {}, "crop": {"size": [8, 16]}, "scale": {}}, AUGMENT_SECTION
    )
    assert list(augment.steps) == ["scale", "crop", "flip", "jitter"]
    with drawing_from(0):
        done = augment(sample())
    assert done["image"].shape == (3, 8, 16)
    assert done["image"].dtype == torch.uint8
    assert set(done) == {"image", "label", "name"}


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"scale": {"factors": [1.0]}}, "'scale' gives every sample another size"),
        ({"scale": {"ratio": [2, 1]}, "crop": {"size": 8}}, r"(?s)ratio .*augment.scale"),
        ({"scale": {"factors": []}, "crop": {"size": 8}}, r"(?s)no factors.*augment.scale"),
        ({"crop": {"size": 0}}, "crop.size"),
        ({"crop": {"size": 8, "fill": "white"}}, "crop.fill"),
        ({"color_jitter": {}}, "Unknown name 'color_jitter'"),
    ],
)
def test_wrong_arguments_are_refused(section: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        build_augment(section, AUGMENT_SECTION)


def test_the_debug_size_fits_data_protocols_and_classes(tmp_path: Path) -> None:
    config = {
        "data": {"classes": "camvid-11"},
        "augment": {"crop": {"size": 1024}, "flip": {}},
        "model": {"name": "seg/bisenetv1", "classes": 11, "backbone": {"pretrained": True}},
        "train": {"validate": "ss+size-768x1536"},
        "eval": {"splits": ["val", "trainval"], "protocols": ["ssc-1024-2/3", "mscf-960-5/6+scales-1-2", "ss+short-512"]},
    }  # fmt: skip
    overrides = dict(text.split("=", 1) for text in debug(config, tmp_path))
    assert overrides["data.classes"] == "demo-19"
    assert overrides["model.classes"] == "19"
    assert overrides["model.backbone.pretrained"] == "false"
    assert overrides["augment.crop.size"] == "[64, 128]"
    assert "augment.flip.size" not in overrides
    assert overrides["eval.splits"] == '["val", "test"]'
    assert overrides["train.validate"] == '"ss+size-64x128"'
    assert overrides["eval.protocols"] == '["ssc-64-32", "mscf-64-32+scales-1-2", "ss+short-64"]'
    assert (tmp_path / "segment" / "leftImg8bit" / "val").is_dir()

    config["data"] = {"classes": "cityscapes-20"}
    assert not any(text.startswith(("data.classes", "model.classes")) for text in debug(config, tmp_path))


def test_every_step_of_the_table_can_be_built_by_name() -> None:
    section = {name: {"size": 8} if name in ("crop", "resize") else {} for name in AUGMENTS}
    assert list(build_augment(section, AUGMENT_SECTION).steps) == list(AUGMENTS)
