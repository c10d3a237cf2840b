"""The recipes made from the diary of CT denoising: what they say, and what they differ in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from anban.recipe import Recipe
from anban.study.study import load_plan, study_files
from anban.testing.recipes import Config, catalogue, key, load, noted, say_the_same

#: Recipes that are their base by another name, and why.
SAME_AS_BASE = {
    "loss-pixelwise": "the published loss is L1",
    "fusion-simple": "it is the baseline's fusion",
    "no-final-activation": "the published generators have none",
}


def terms(config: Config) -> list[str]:
    """The terms of the image, as the note calls them."""
    names = {"l1": "pixelwise", "texture": "texture (gram)", "perceptual": "perceptual"}
    return [names[name] for name in config["loss"]]


#: What the catalogue found in the note -> what the configuration has for it.
SETTINGS: dict[str, Callable[[Config], Any]] = {
    "fusion": lambda config: {
        ("conv", "maps"): "simple",
        ("cross-attention", "maps"): "cross attention",
        ("restormer", "maps"): "restormer",
        ("conv", "features"): "feature maps",
    }[config["model"]["fusion"]["method"], config["model"]["fusion"]["of"]],
    "fusion_kernel": key("model.fusion.kernel"),
    "interaction": lambda config: {0: "only in SimpleFusion", 1: "earlier", 4: "throughout"}[
        len(config["model"]["cross_attention"]["decoder"])
    ],
    "attention": lambda config: {"both": "cross", "content": "content branch"}[config["model"]["self_attention_in"]],
    "discriminator": lambda config: config["adversarial"]["loss"].upper(),
    "generator_steps": key("alternation.generator_steps"),
    "discriminator_steps": lambda config: 1,
    "norm": lambda config: {"ln": "layernorm"}[config["model"]["levels"]["norm"]],
    "loss": terms,
    "schema": lambda config: (
        "alpha f + (1 - alpha) g" if config["start"]["alpha"] < 1 else "ema" if config["teacher"]["ema"] else "kd"
    ),
    "final_activation": lambda config: {"none": None}[config["model"]["final_activation"]],
    "texture_weight": key("loss.texture.weight"),
    "activation": lambda config: {"gate": "GLU"}[config["model"]["levels"]["activation"]],
    "inputs": lambda config: [f"noise, {config['model']['channels']} channel", f"content, {config['model']['channels']} channel"],
    "ca": lambda config: config["model"]["levels"]["channel_attention"] != "none",
    "mdta_layers": lambda config: _blocks(config["model"]["self_attention"]),
    "cross_layers": lambda config: _blocks(config["model"]["cross_attention"]),
    "attention_skip": key("model.attention.skip"),
    "attention_layernorm": key("model.attention.norm"),
    "generator": lambda config: "cncl_attn" if config["model"]["cross_attention"]["decoder"] else "cncl_unet",
}  # fmt: skip
#: What a value was before.
BEFORE = {"fusion_kernel_before", "norm_before"}


def _blocks(places: Config) -> int:
    return int(places["layers"]) * len(places["decoder"] + places["encoder"])


@pytest.fixture(scope="module")
def recipes() -> dict[str, Recipe]:
    return noted("ct")


@pytest.fixture(scope="module")
def entries() -> dict[str, Config]:
    return catalogue("ct", "denoising.yaml")


def test_every_variant_has_its_recipe_in_the_words_of_the_note(
    recipes: dict[str, Recipe], entries: dict[str, Config]
) -> None:
    say_the_same(recipes, entries)


def test_the_settings_of_the_note_are_in_effect(
    recipes: dict[str, Recipe], entries: dict[str, Config]
) -> None:
    for name, entry in entries.items():
        for setting, value in entry["settings"].items():
            if setting not in BEFORE:
                assert SETTINGS[setting](recipes[name].config) == value, f"{name}, {setting}"


def test_every_recipe_has_a_short_title(recipes: dict[str, Recipe]) -> None:
    assert all(0 < len(recipe.description.get("title", "")) < 60 for recipe in recipes.values())


def test_a_variant_differs_from_its_base(recipes: dict[str, Recipe]) -> None:
    variants = {name: recipe for name, recipe in recipes.items() if recipe.base}
    same = {name for name, recipe in variants.items() if recipe.hash == load(recipe.base).hash}
    assert same == set(SAME_AS_BASE)
    distinct = {recipe.hash for name, recipe in recipes.items() if name not in SAME_AS_BASE}
    # Weight 1 twice: texture-1 says so of texture-0.1, whose own base has it already.
    assert len(distinct) == len(recipes) - len(SAME_AS_BASE) - 1


def test_the_start_of_the_diary_states_every_switch_of_the_network(recipes: dict[str, Recipe]) -> None:
    """So a default that is changed cannot change it."""
    sources = recipes["cncl-baseline"].sources
    assert {
        name for name, source in sources.items() if name.startswith("model.") and source == "default"
    } == set()


def test_the_real_slices_are_of_the_baseline_but_for_three_switches() -> None:
    sources = load("ct/real-cncl").sources
    changed = {
        name for name, source in sources.items() if name.startswith("model.") and source == "ct/real-cncl"
    }
    assert changed == {"model.levels.width", "model.levels.norm", "model.fusion.init"}


def test_every_study_has_arms_that_differ() -> None:
    """`load_plan` refuses twins, and a score that an arm does not have."""
    studies = [name for name in study_files() if name.startswith("ct/")]
    assert len(studies) >= 5
    assert all(len(load_plan(name, []).arms) > 1 for name in studies)


def test_the_demo_study_asks_where_the_branches_meet() -> None:
    plan = load_plan("ct/demo-interaction", [])
    asked = [
        (len(a["cross_attention"]["decoder"]), a["attention"]["norm"], a["attention"]["skip"])
        for a in (arm.recipe.config["model"] for arm in plan.arms)
    ]
    switches = [(norm, skip) for norm in (True, False) for skip in (True, False)]
    assert sorted(asked) == sorted([(0, True, True), *((n, *both) for n in (1, 4) for both in switches)])
    assert len(plan.seeds) == 3
    assert (plan.base, plan.arms[0].title) == ("end-only", "end only")
    for arm in plan.arms:
        patch = arm.recipe.config["data"]["patch"]
        assert plan.compare["protocol"].startswith(f"sliding-{patch}-"), "seen as it was trained"
