"""The recipes made from the training diary of BiSeNet: what they say, and what they differ in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from anban.recipe import Recipe
from anban.study.study import load_plan, study_files
from anban.tasks.segment.classes import class_set
from anban.tasks.segment.protocols import parse_protocol
from anban.testing.recipes import Config, catalogue, key, load, noted, say_the_same

#: Recipes that are their base by another name, and why.
SAME_AS_BASE = {
    "15b-one-card": "its base has one card already",
    "ffm-final": "the FFM of 512 channels, whose score is written a second time",
    "old-ohem-960-again": "another seed of it",
    "final-1024-new-ohem": "it is chosen",
}

#: Recipes that differ from their base in how the trained network is measured, and in nothing else.
MEASURED_OTHERWISE = {
    "10-fpn-nearest-no-eval-interp",
    "1024-aux-psp-1536x768",
    "2b-eval-1024",
    "80k-crop-eval-empty-2-3",
    "80k-crop-eval-empty-5-6",
    "80k-crop-eval-zeros",
    "80k-ffm-out-10x-flip-exp",
    "80k-warmup-eval-crop960",
    "eval-crop-scale1",
    "ohem-lr1e-2-flip-msc",
    "ohem-nearest-frozen-bn",
}

#: Recipes that train the network of their base in another way.
TRAINED_OTHERWISE = {
    "1024-large-crop-bn",
    "15b-two-cards",
    "2-paper-1000-11000",
    "2-paper-11000-nowarmup",
    "2-paper-11000-warmup-fixed",
    "2-paper-21000-nowarmup",
    "2c-warmup-if-diverging",
    "7-iters-31000",
    "7-iters-51000",
    "7-iters-71000",
    "7-iters-91000",
    "7c-two-step-schedule",
    "80k-lr2e-2",
    "80k-lr5e-3",
    "80k-warmup-eval-crop1024",
    "deeplab-ohem",
    "focal-loss",
    "iters40k-no-arm-no-avg",
    "iters70k-arm-outside",
    "lr-by-cards",
    "lrx10-80ep-1e-2-nearest",
    "lrx10-80ep-5e-3-nearest",
    "lrx10-81k-1e-2-nearest",
    "lrx10-81k-5e-3-nearest",
    "nearest-no-warmup",
    "new-layers-10x-lr",
    "new-ohem-1024",
    "new-ohem-960",
    "new-scale-aug",
    "ohem-960-jitter",
    "ohem-lr1e-2-1536x768",
    "ohem-lr1e-2-2048x1024",
    "torchseg-lr2.5e-2",
    "torchseg-ohem",
}

#: The starts of the diary's ages, which state the whole network.
AGES = ("1-baseline", "head-feat32-direct", "torchseg-nearest")


def crop(config: Config) -> list[int]:
    """Width and height of the training's crops, as the note writes them."""
    size = config["augment"]["crop"]["size"]
    return [size, size] if isinstance(size, int) else [size[1], size[0]]


def evaluated(config: Config) -> list[int]:
    """Width and height of the pictures that are evaluated, as the note writes them."""
    start = parse_protocol(config["eval"]["protocols"][0]).start
    return [start.pixels[1], start.pixels[0]] if start else [2048, 1024]


def windows(config: Config) -> list[int]:
    size = parse_protocol(config["eval"]["protocols"][0]).crop
    assert size is not None
    return list(size)


def ramp(config: Config) -> int:
    """Steps over which the rate rises."""
    return config["schedule"]["warmup"] if config["schedule"]["warmup_start"] < 1 else 0


#: What the catalogue found in the note -> what the configuration has for it.
SETTINGS: dict[str, Callable[[Config], Any]] = {
    "momentum": key("optimizer.momentum"),
    "weight_decay": key("optimizer.weight_decay"),
    "lr": key("optimizer.lr"),
    "lr_start": key("optimizer.lr"),
    "max_iter": key("train.iterations"),
    "epochs": key("train.epochs"),
    "power": key("schedule.power"),
    "warmup": ramp,
    "warmup_steps": ramp,
    "warmup_start_lr": lambda config: pytest.approx(
        config["optimizer"]["lr"] * config["schedule"]["warmup_start"]
    ),
    "new_layer_lr_factor": key("optimizer.new_layer_rate"),
    "head_lr_factor": key("optimizer.new_layer_rate"),
    "classes": key("model.classes"),
    "ignore_label_as_class": lambda config: class_set(config["data"]["classes"]).void,
    "aux": key("model.auxiliary.sources"),
    "aux_conv": lambda config: int(config["model"]["auxiliary"]["steps"][0][0]),
    "aux_dropout": key("model.auxiliary.dropout"),
    "aux_sees_arm": lambda config: config["model"]["auxiliary"]["sources"][0].startswith("arm"),
    "sp_channels": key("model.spatial_path.channels"),
    "sp_first_kernel": lambda config: config["model"]["spatial_path"]["kernels"][0],
    "sp_second_kernel": lambda config: config["model"]["spatial_path"]["kernels"][1],
    "sp_third_kernel": lambda config: config["model"]["spatial_path"]["kernels"][2],
    "sp_third_channels": lambda config: config["model"]["spatial_path"]["channels"][2],
    "strides_first": lambda config: config["model"]["spatial_path"]["strides"][0],
    "sp": lambda config: {"convolutions": config["model"]["spatial_path"]["channels"][0]}.get(
        source := config["model"]["spatial_path"]["source"], source
    ),
    "global_context": key("model.global_context.kind"),
    "avg": lambda config: config["model"]["global_context"]["kind"] != "none",
    "sigmoid": lambda config: "sigmoid" in config["model"]["global_context"]["kind"],
    "arm": lambda config: config["model"]["arm"]["attention"] != "none",
    "arm_bn": lambda config: "bn" in config["model"]["backbone"]["attention"],
    "context_channels": key("model.context_path.width"),
    "conv_out": lambda config: config["model"]["context_path"]["out"] != "none",
    "conv_after": lambda config: {"none": None}.get(
        step := config["model"]["context_path"]["out"], step[0].isdigit() and int(step[0])
    ),
    "conv_after_interpolate": lambda config: int(config["model"]["context_path"]["out"][0]),
    "outer_conv": lambda config: config["model"]["context_path"]["outer"] != "none",
    "conv16_outer": lambda config: config["model"]["context_path"]["outer"] != "none",
    "feat8_arm": lambda config: config["model"]["context_path"]["finest"] == 8,
    "ffm_stride": key("model.fusion.stride"),
    "ffm_channels": key("model.fusion.width"),
    "ffm_keeps_channels": lambda config: config["model"]["fusion"]["width"] == 512 + 512,
    "join": key("model.fusion.join"),
    "extra_conv": lambda config: int(config["model"]["head"]["steps"][0][0]),
    "last_kernel": lambda config: int(config["model"]["head"]["steps"][-1][0]),
    "head_channels": key("model.head.width"),
    "interpolation": key("model.upsampling.levels"),
    "fpn_interpolation": key("model.upsampling.levels"),
    "cp_upsample": key("model.upsampling.levels"),
    "interpolation_before_3x3": key("model.upsampling.last"),
    "main_out": key("model.upsampling.output"),
    "tune_pretrained_bn": lambda config: not config["model"]["backbone"]["freeze_bn"],
    "inplace": lambda config: config["model"]["norm"] == "inplace-abn",
    "norm": key("model.norm"),
    "init": key("model.init"),
    "crop": crop,
    "cropsize": crop,
    "train_crop": lambda config: crop(config)[0],
    "scale": lambda config: config["augment"].get("scale"),
    "color_jitter": lambda config: config["augment"].get("jitter"),
    "hard_mining": lambda config: config["loss"].get("ohem"),
    "ohem": key("loss.ohem.form"),
    "ohem_thresh": key("loss.ohem.thresh"),
    "loss": lambda config: next(name for name, term in config["loss"].items() if term),
    "size": evaluated,
    "eval_interpolate": lambda config: parse_protocol(config["eval"]["protocols"][0]).start,
    "eval_size": windows,
    "eval_crop": lambda config: windows(config)[0],
    "border": lambda config: parse_protocol(config["eval"]["protocols"][0]).border,
}
#: Words of the note that are a value, and which; other words are prose.
WORDS: dict[str, Any] = {
    "nearest": "nearest",
    "bilinear": "bilinear",
    "deconv": "deconvolution",
    "avg": "avg",
    "avg_sig": "conv-bn-sigmoid",
    "kaiming_normal": "kaiming",
    "res2": "res2",
    "bn": "bn",
    "gn": "gn",
    "sum": "sum",
    "ffm": "ffm",
    "old": "old",
    "new (memory saving)": "new",
    "deeplab": "deeplab",
    "focal": "focal",
    "empty": "mirror",
    "zeros": "zeros",
    "1": True,
}
#: Numbers that are no keys: what follows from other settings, how a switch works inside, how a run is started.
NO_KEYS = {"channels", "ffm_inputs", "sp_kernels", "out_kernels", "deconv_kernel", "deconv_stride", "deconvs",
           "aux_upsample", "gpus", "no_weight_decay"}  # fmt: skip
#: Numbers that contradict others of their line.
NOT_IN_EFFECT = {("21-sp-7-5-5x4", "sp_channels")}


def base_of(recipe: Recipe) -> Recipe:
    assert recipe.base is not None
    return load(recipe.base)


@pytest.fixture(scope="module")
def recipes() -> dict[str, Recipe]:
    return noted("seg")


@pytest.fixture(scope="module")
def entries() -> dict[str, Config]:
    return catalogue("seg", "segmentation.yaml")


def test_every_variant_has_its_recipe_in_the_words_of_the_note(
    recipes: dict[str, Recipe], entries: dict[str, Config]
) -> None:
    say_the_same(recipes, entries)


def test_the_numbers_of_the_note_are_in_effect(
    recipes: dict[str, Recipe], entries: dict[str, Config]
) -> None:
    for name, entry in entries.items():
        for setting, value in entry["settings"].items():
            if (name, setting) in NOT_IN_EFFECT or (isinstance(value, str) and value not in WORDS):
                continue
            wanted = WORDS[value] if isinstance(value, str) else value
            if setting not in SETTINGS:
                assert setting in NO_KEYS or isinstance(wanted, str | bool), f"{name}, {setting}"
                continue
            found = SETTINGS[setting](recipes[name].config)
            assert wanted == (bool(found) if isinstance(wanted, bool) else found), f"{name}, {setting}"


def test_every_recipe_has_a_short_title(recipes: dict[str, Recipe]) -> None:
    assert all(0 < len(recipe.description.get("title", "")) < 60 for recipe in recipes.values())


def test_a_variant_differs_from_its_base(recipes: dict[str, Recipe]) -> None:
    variants = {name: recipe for name, recipe in recipes.items() if recipe.base}
    assert {name for name, recipe in variants.items() if recipe.hash == base_of(recipe).hash} == set(
        SAME_AS_BASE
    )
    assert recipes["old-ohem-960-again"].config["seed"] != recipes["ohem-960-jitter"].config["seed"]
    distinct = {recipe.hash for name, recipe in recipes.items() if name not in SAME_AS_BASE}
    assert len(distinct) == len(recipes) - len(SAME_AS_BASE)


def test_what_differs_is_the_measurement_the_training_or_the_network(recipes: dict[str, Recipe]) -> None:
    changed = {
        name: {path.split(".")[0] for path in recipe.difference}
        for name, recipe in recipes.items()
        if recipe.base and name not in SAME_AS_BASE
    }
    assert {name for name, sections in changed.items() if sections == {"eval"}} == MEASURED_OTHERWISE
    assert {name for name, sections in changed.items() if "model" not in sections} == (
        MEASURED_OTHERWISE | TRAINED_OTHERWISE
    )


def test_the_classes_of_the_network_are_those_of_the_data(recipes: dict[str, Recipe]) -> None:
    for name, recipe in recipes.items():
        assert recipe.config["model"]["classes"] == len(class_set(recipe.config["data"]["classes"])), name


def test_a_list_of_scores_has_one_for_every_validation(recipes: dict[str, Recipe]) -> None:
    for name, recipe in recipes.items():
        if "mIoU_list" in recipe.description["recorded"]:
            train = recipe.config["train"]
            assert len(recipe.description["recorded"]["mIoU_list"]) == (
                train["iterations"] // train["eval_every"]
            ), name
            assert recipe.config["machine"]["keep_every"] == train["eval_every"], name


def test_the_starts_of_the_ages_state_every_switch_of_the_network(recipes: dict[str, Recipe]) -> None:
    """So a default that is changed cannot change them; the last two say what a network returns, not what it is."""
    for name in AGES:
        stated = {k for k, source in recipes[name].sources.items() if source == f"seg/{name}"}
        switches = {k for k in recipes[name].sources if k.startswith("model.")}
        assert switches - stated == {"model.side_outputs", "model.output"}, name


def test_every_study_has_arms_that_differ() -> None:
    """`load_plan` refuses twins, and a score that an arm does not have."""
    studies = [name for name in study_files() if name.startswith("seg/")]
    assert len(studies) >= 20
    assert all(len(load_plan(name, []).arms) > 1 for name in studies)


def test_what_should_be_gained_stands_beside_the_arms() -> None:
    plan = load_plan("seg/gains", [])
    wanted = {arm.name: (arm.expected.gain, arm.expected.over) for arm in plan.arms if arm.expected}
    assert wanted == {
        "sum": (0.8, "u-shape"),
        "ffm": (1.4, "u-shape"),
        "arm": (1.3, "ffm"),
        "avg": (1.0, "ffm"),
    }
