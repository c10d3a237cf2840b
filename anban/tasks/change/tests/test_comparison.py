"""The comparison of all networks: the page's table, the studies, and the recipes say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import anban
from anban.engine.profile import count
from anban.recipe import load_recipe
from anban.study.study import Plan, load_plan
from anban.tasks.change.models import MODELS

PAGE = (Path(__file__).parents[4] / "docs" / "change.md").read_text(encoding="utf-8")
COLUMNS = ("family", "paper", "parameters", "macs", "recipe", "f1")
TABLE = {
    name: dict(zip(COLUMNS, re.split(r" *\| *", cells), strict=True))
    for name, cells in re.findall(r"^\| `change/([\w-]+)` \| (.+?) *\|$", PAGE, re.MULTILINE)
    if cells.count("|") == len(COLUMNS) - 1
}


def families(plan: Plan) -> dict[str, str]:
    """Network -> its group, over the arms of a plan."""
    group_of = {name: group for group, names in plan.groups.items() for name in names}
    return {
        arm.recipe.config["model"]["name"].removeprefix("change/"): group_of[arm.name] for arm in plan.arms
    }


def test_the_page_and_the_comparison_have_every_network_in_its_family() -> None:
    assert families(load_plan("change/comparison", [])) == {
        name: row["family"] for name, row in TABLE.items()
    }
    assert TABLE.keys() == MODELS.keys()
    sample = families(load_plan("change/comparison-sample", []))
    assert len(sample) >= 8
    assert set(sample.values()) == {"CNN", "Transformer", "Mamba"}
    assert all(TABLE[name]["family"] == family for name, family in sample.items())


@pytest.mark.parametrize("study", ["change/comparison", "change/comparison-sample"])
def test_arms_have_their_own_optimiser_and_the_same_data_budget_and_protocol(study: str) -> None:
    plan = load_plan(study, ["data.root=elsewhere"])
    configs = [arm.recipe.config for arm in plan.arms]
    for config in configs[1:]:
        for section in ("data", "augment", "eval"):
            assert config[section] == configs[0][section]
        for key in ("iterations", "epochs"):
            assert config["train"][key] == configs[0]["train"][key]
    assert len({str(config["optimizer"]) for config in configs}) > 3
    assert configs[0]["data"]["root"] == "elsewhere"


@pytest.mark.parametrize("name", MODELS)
def test_the_page_has_the_recipe_and_its_published_score(name: str) -> None:
    recipe = load_recipe(f"change/{TABLE[name]['recipe'].strip('`')}")
    assert recipe.config["model"]["name"] == f"change/{name}"
    score = TABLE[name]["f1"].split()[0]
    assert score == "–" or score in recipe.description["expected"]


@pytest.mark.parametrize("name", MODELS)
def test_the_page_has_the_parameters(name: str) -> None:
    # Two constructors look at the values that they draw, and there are none on the meta device.
    with torch.device("cpu" if name in ("changeformer", "hanet") else "meta"):
        model = anban.create_model(f"change/{name}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert TABLE[name]["parameters"] == f"{parameters / 1e6:.2f}"


@pytest.mark.parametrize("name", ["fc-ef", "tinycd", "bit", "a2net", "mambabcd"])
def test_the_page_has_the_multiply_adds(name: str) -> None:
    with torch.device("meta"):
        model = anban.create_model(f"change/{name}")
        macs = count(model, (torch.empty(1, 3, 256, 256), torch.empty(1, 3, 256, 256))).macs
    assert TABLE[name]["macs"] == f"{macs / 1e9:.2f}"
