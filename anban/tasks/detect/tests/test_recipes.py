"""The recipes made from the work log: their words are the catalogue's, and they differ from their base in what they say."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from anban.recipe import Recipe, flatten, load_recipe
from anban.recipe.recipe import recipe_files
from anban.recipe.yamlfile import read
from anban.study.study import load_plan, study_files
from anban.tasks.detect.metric import SELECT

#: Recipes that are their base by another name, and why.
SAME_AS_BASE = {
    "2022-0523-pvt-original": "the base is PVT-Tiny",
    "2022-0712-sparse-attention": "it is chosen",
    "2022-0829-original": "written down again",
}

#: What the catalogue found in the note -> what the configuration has for it.
SETTINGS = {
    "epochs": lambda c: c["train"]["epochs"],
    "workers": lambda c: c["machine"]["workers"],
    "batch_size": lambda c: c["train"]["batch_size"],
    "patch_size": lambda c: c["model"]["backbone"]["patch_sizes"][0],
    "stride": lambda c: c["model"]["backbone"]["patch_strides"][0],
    "stages": lambda c: len(c["model"]["backbone"]["widths"]),
    "layers_per_stage": lambda c: c["model"]["backbone"]["depths"][0],
    "spatial_reduction": lambda c: c["model"]["backbone"]["attention"]["kind"] == "reduced",
    "fpn": lambda c: c["model"]["detector"]["top_down"],
    "dilated_convolution": lambda c: c["model"]["backbone"]["dilation"]["place"] != "none",
}

FILES = {
    name: file
    for name, file in recipe_files().items()
    if file.parent.name == "log" and name.startswith("det/")
}


@cache
def loaded(name: str) -> Recipe:
    return load_recipe(name)


def entries() -> list[dict[str, Any]]:
    folder = os.environ.get("ANBAN_CATALOGUE")
    if folder is None:
        pytest.skip("needs ANBAN_CATALOGUE, the folder of the catalogue")
    found: list[dict[str, Any]] = yaml.safe_load(
        (Path(folder) / "detection.yaml").read_text(encoding="utf-8")
    )
    return found


def test_the_words_are_the_catalogues() -> None:
    catalogue = {entry["id"]: entry for entry in entries()}
    assert set(catalogue) == set(FILES)
    for name, entry in catalogue.items():
        content = read(FILES[name])
        for key in ("note", "original", "recorded", "finding"):
            assert content.get(key) == entry.get(key), (name, key)
        assert content["base"] == (entry["base"] or "det/retinanet-pvt-coco"), name


def test_settings_of_the_note_are_in_the_configuration() -> None:
    checked = 0
    for entry in entries():
        config = loaded(entry["id"]).config
        for key in SETTINGS.keys() & entry["settings"].keys():
            # what it is, where the note gives a number
            if isinstance(entry["settings"][key], int | bool):
                assert SETTINGS[key](config) == entry["settings"][key], (entry["id"], key)
                checked += 1
    assert checked > 15


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_recipe_says_why_and_changes_its_base(name: str) -> None:
    content = read(FILES[name])
    assert len(content["decision"]) > 20
    assert len(content["title"]) < 60
    base = dict(flatten(loaded(content["base"]).config))
    changed = {key for key, value in flatten(loaded(name).config) if base.get(key) != value}
    assert bool(changed) == (name.removeprefix("det/") not in SAME_AS_BASE)


def test_images_are_trained_and_evaluated_at_one_size() -> None:
    for name in FILES:
        config = loaded(name).config
        resize = config["augment"]["resize"]
        short, longest = resize["short"], resize["longest"]
        expected = f"short-{short}-{longest}" if resize["size"] is None else f"size-{resize['size'][0]}"
        assert config["eval"]["protocols"] == [expected] == [config["train"]["validate"]], name


@pytest.mark.parametrize("name", [name for name in study_files() if name.startswith("det/")])
def test_studies_compare_what_their_runs_will_count(name: str) -> None:
    plan = load_plan(name, [])
    config = plan.arms[0].recipe.config
    chosen = (plan.compare["split"], plan.compare["protocol"])
    assert chosen == (config["eval"]["splits"][0], config["eval"]["protocols"][0])
    assert plan.compare["metric"] == SELECT
    assert len({arm.recipe.hash for arm in plan.arms}) == len(plan.arms) > 1
