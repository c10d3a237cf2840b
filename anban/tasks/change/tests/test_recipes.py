"""The recipes made from the notebooks: what they say, and what they differ in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from anban.recipe import Recipe
from anban.ssm.vmamba.forward_types import forward_type
from anban.study.study import load_plan
from anban.testing.recipes import Config, catalogue, key, load, noted, say_the_same

VERSIONS = ["v1", "v2-dim80", "v2-dim96", *(f"v{number}" for number in range(3, 17))]
ARMS = ["0-0-0", "0-1-0", "0-2-0", "0-3-0", "1-0-0", "2-0-0", "3-0-0", "0-0-1", "0-0-2", "0-0-3", "0-0-4"]

#: Recipes that are their base by another name, and why.
SAME_AS_BASE = {
    "v5-lap-6to1": "the state that version 5 leaves, which version 4 has",
    "v8-fusion-module": "an item of version 8, which has it",
    "run-103041": "version 5 itself",
    "run-103502": "version 8.1, which is version 8 as it stands",
    "run-103578": "run 103502 again",
    "run-103642": "version 9 itself",
    "run-104021": "clearing the cache changes no number",
    "run-106477": "run 106476 with another seed",
    "ablation-0-0-0": "the complete model, which the base is",
    "norm-bn": "the base has batch norm",
    "skip-cat": "the base concatenates",
    "decoder-fuse-then-vssb": "version 8 fuses first",
    "forward-v05_noz": "the base has this forward type",
    "scan-oflex": "v3noz has chosen the oflex kernel",
    "final-upsample-4x": "the base enlarges at once",
    "cssm-ab-global": "the base integrates by CSSM",
    "act-silu": "the base has SiLU",
    "backbone-vmamba": "the base scans in four directions",
}

#: Numbers and plain words that the catalogue found in the note -> what the configuration has for them.
SETTINGS: dict[str, Callable[[Config], Any]] = {
    "lr": key("optimizer.lr"),
    "lr_reached": lambda config: pytest.approx(config["optimizer"]["lr"] * config["schedule"]["gamma"]),
    "value": key("optimizer.weight_decay"),
    "optimizer": key("optimizer.name"),
    "plateau_patience_epochs": key("schedule.patience"),
    "batch_size": key("train.batch_size"),
    "epochs": key("train.epochs"),
    "input_size": lambda config: [1024, 1024] if config["data"]["tile"] is None else None,
    "dim": key("model.dims"),
    "dims": key("model.dims"),
    "depths": lambda config: config["model"]["depths"][:3],
    "forward_type": key("model.vss.forward_type"),
    "activation": key("model.vss.activation"),
    "scan_directions": lambda config: len(set(forward_type(config["model"]["vss"]["forward_type"]).orders)),
    "patch_embed": key("model.encoder.stem"),
    "conv": key("model.encoder.difference"),
    "ddb": lambda config: config["model"]["encoder"]["difference"] != "none",
    "conv_small_kernel": key("model.decoder.conv_small"),
    "decoder_mlp": key("model.decoder.mlp"),
    "edge_layers": key("model.enhancement.levels"),
    "lap_in_channels": lambda config: {"pair": 6, "a": 3, "b": 3}[
        config["model"]["enhancement"]["second_order"][0]
    ],
    "lap_out_channels": key("model.enhancement.width"),
    "laplace_channels": key("model.enhancement.width"),
    "laps": lambda config: len(config["model"]["enhancement"]["second_order"]),
    "ablap": lambda config: config["model"]["enhancement"]["second_order"] == ["a", "b"],
    "first_order": lambda config: config["model"]["enhancement"]["first_order"] != [],
    "difference_fusion_branches": lambda config: int(config["model"]["enhancement"]["with_difference"]),
    "gaussian_conv_bias": key("model.enhancement.gaussian_bias"),
    "mlp": key("model.enhancement.mlp"),
    "edge_mlp": key("model.enhancement.mlp"),
    "multiplication_branch": key("model.enhancement.product"),
    "aff_activation": key("model.aff.activation"),
    "aff_kernel": key("model.aff.kernel"),
    "classifier_kernel": key("model.classifier.kernel"),
    "conv_small": lambda config: [
        config["model"]["decoder"]["conv_small"],
        config["model"]["classifier"]["kernel"],
    ],
}
#: The same of what a setting was before, which the base has.
BEFORE = {
    "plateau_patience_epochs_before": key("schedule.patience"),
    "dim_before": key("model.dims"),
    "aff_activation_before": key("model.aff.activation"),
    "conv_before": key("model.encoder.difference"),
    "norm_before": key("model.encoder.difference_norm"),
}
#: Numbers that are no keys: labels, results, what follows from other settings, how a switch works inside.
NO_KEYS = {"tag", "lr_reached_at_epoch", "lr_factor", "inference_size", "level_sizes", "reduce", "then_raise",
           "terms", "convs", "lap_branches", "final_upsample", "last_layer_extra_upsample"}  # fmt: skip


@pytest.fixture(scope="module")
def recipes() -> dict[str, Recipe]:
    return noted("change")


@pytest.fixture(scope="module")
def entries() -> dict[str, Config]:
    return catalogue("change", "change.yaml")


def test_every_variant_has_its_recipe_in_the_words_of_the_note(
    recipes: dict[str, Recipe], entries: dict[str, Config]
) -> None:
    say_the_same(recipes, entries, base="change/levir-stnet")


def test_the_numbers_of_the_note_are_in_effect(
    recipes: dict[str, Recipe], entries: dict[str, Config]
) -> None:
    for name, entry in entries.items():
        config, base = recipes[name].config, load(recipes[name].base).config
        for setting, value in entry["settings"].items():
            value = value.lower() if isinstance(value, str) else value
            if setting in SETTINGS:
                assert value == SETTINGS[setting](config), f"{name}, {setting}"
            elif setting in BEFORE:
                assert value == BEFORE[setting](base), f"{name}, {setting}"
            else:
                assert setting in NO_KEYS or isinstance(value, str | bool), f"{name}, {setting}"


def test_a_factor_on_the_rate(recipes: dict[str, Recipe]) -> None:
    rates = [recipes[name].config["optimizer"]["lr"] for name in ("run-103140", "run-103041")]
    assert rates[0] == pytest.approx(10.7 * rates[1])


def test_every_recipe_has_a_short_title(recipes: dict[str, Recipe]) -> None:
    assert all(0 < len(recipe.description.get("title", "")) < 60 for recipe in recipes.values())


def test_versions_state_every_switch_of_the_model(recipes: dict[str, Recipe]) -> None:
    """So a default that is changed, or another version, cannot change them."""
    for version in VERSIONS:
        sources = {k: source for k, source in recipes[version].sources.items() if k.startswith("model.")}
        assert set(sources.values()) == {f"change/{version}"}, version
        assert len(sources) > 50


def test_the_last_version_is_the_complete_model(recipes: dict[str, Recipe]) -> None:
    complete = load("change/levir-stnet").config["model"]
    assert recipes["v16"].config["model"] == complete
    assert recipes["ablation-0-0-0"].config["model"] == complete


def test_what_the_note_repeats_is_one_experiment(recipes: dict[str, Recipe]) -> None:
    for again, first in (
        ("run-103578", "run-103502"),
        ("run-106477", "run-106476"),
        ("run-104021", "run-103962"),
        ("run-103892", "v10"),
        ("run-105380", "v13"),
        ("run-105827", "v14"),
        ("run-105975", "v15"),
        ("run-106394", "v16"),
        ("trunk-no-enhancement", "ablation-0-0-1"),
    ):
        assert recipes[again].hash == recipes[first].hash, again
    assert recipes["run-106477"].config["seed"] != recipes["run-106476"].config["seed"]


def test_a_variant_differs_from_its_base(recipes: dict[str, Recipe]) -> None:
    same = {name for name, recipe in recipes.items() if recipe.hash == load(recipe.base).hash}
    assert same == set(SAME_AS_BASE)


def test_what_was_found_of_one_experiment_does_not_contradict_itself(recipes: dict[str, Recipe]) -> None:
    """Runs that are one experiment, and clear the GPU's cache alike, blow up all or none."""
    found = defaultdict(set)
    for name, recipe in recipes.items():
        if name.startswith("run-"):
            recorded = recipe.description["recorded"]
            blew_up = bool(recorded.get("blew_up") or recorded.get("out_of_memory"))
            found[recipe.hash, recipe.config["machine"]["clear_cache"]].add(blew_up)
    assert all(len(outcomes) == 1 for outcomes in found.values())


def test_the_arms_of_the_ablation_are_different_experiments(recipes: dict[str, Recipe]) -> None:
    assert len({recipes[f"ablation-{code}"].hash for code in ARMS}) == 11
    plan = load_plan("change/ablation", [])
    assert [arm.name for arm in plan.arms] == ARMS
    assert plan.base == "0-0-0"


def test_the_grid_has_every_combination(recipes: dict[str, Recipe]) -> None:
    hashes = {arm.name: arm.recipe.hash for arm in load_plan("change/ablation-grid", []).arms}
    assert len(set(hashes.values())) == len(hashes) == 80
    assert all(hashes[code] == recipes[f"ablation-{code}"].hash for code in ARMS)
