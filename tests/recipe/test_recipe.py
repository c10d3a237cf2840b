from __future__ import annotations

from pathlib import Path

import pytest

from anban.errors import InputError
from anban.recipe import differences, from_config, list_recipes, load_recipe
from anban.recipe.recipe import recipe_files
from anban.recipe.yamlfile import parse

BASE = """
task: change
title: A base
data: {root: here}
augment: {flip: {}}
model: {name: change/tinycd}
loss: {bce: {}}
optimizer: {name: sgd, lr: 5e-4, momentum: 0.8}
schedule: poly
train: {iterations: 10}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path / "base.yaml"


def write(base: Path, text: str) -> str:
    file = base.with_name("difference.yaml")
    file.write_text(text)
    return str(file)


def test_every_recipe_on_disk_loads() -> None:
    files = recipe_files()
    assert len(files) >= 10
    for name in files:
        recipe = load_recipe(name)
        assert recipe.config["task"] == recipe.task
        assert len(recipe.hash) == 12
    listed = list(list_recipes())
    assert {line["id"] for line in listed} == set(files)
    assert {"id", "task", "base", "title", "note", "recorded"} <= set(listed[0])


def test_values_know_where_they_come_from(base: Path) -> None:
    name = write(base, "base: base.yaml\noptimizer.lr: 0.1\ntrain: {clip_norm: 1}")
    recipe = load_recipe(name, ["train.batch_size=2"])
    assert recipe.config["optimizer"] == {
        "name": "sgd",
        "lr": 0.1,
        "momentum": 0.8,
        "nesterov": False,
        "weight_decay": 0.0,
        "new_layer_rate": 1.0,
        "new_layers": None,
        "decay_norm_and_bias": False,
        "processes": "same",
    }
    assert recipe.sources["optimizer.lr"] == "local/difference"
    assert recipe.sources["optimizer.momentum"] == "local/base"
    assert recipe.sources["optimizer.nesterov"] == "default"
    assert recipe.sources["train.batch_size"] == "command line"
    assert recipe.base == "local/base"
    assert recipe.difference == {"optimizer.lr": 0.1, "train.clip_norm": 1.0, "train.batch_size": 2}


def test_a_new_name_drops_the_old_ones_arguments(base: Path) -> None:
    recipe = load_recipe(write(base, "base: base.yaml\noptimizer: {name: adam}"))
    assert "momentum" not in recipe.config["optimizer"]
    assert recipe.config["optimizer"]["lr"] == 1e-3
    assert load_recipe(str(base), ["optimizer=adamw"]).config["optimizer"]["name"] == "adamw"


def test_the_order_of_overrides_does_not_matter(base: Path) -> None:
    for overrides in (["optimizer.lr=0.5", "optimizer.name=adam"], ["optimizer=adam", "optimizer.lr=0.5"]):
        recipe = load_recipe(str(base), overrides)
        assert recipe.config["optimizer"]["name"] == "adam"
        assert recipe.config["optimizer"]["lr"] == 0.5
        assert recipe.sources["optimizer.lr"] == "command line"
        assert recipe.sources["optimizer.eps"] == "default"


def test_where_the_data_lie_is_not_the_experiment(base: Path) -> None:
    here, there = (load_recipe(str(base), [f"data.root={place}"]) for place in ("a/LEVIR", "/b/c/LEVIR"))
    assert here.hash == there.hash == load_recipe(str(base), ["data.root=LEVIR", "data.cache=true"]).hash
    assert here.hash != load_recipe(str(base), ["data.root=WHU"]).hash


def test_null_removes_an_entry(base: Path) -> None:
    assert load_recipe(str(base), ["augment.flip=null"]).config["augment"] == {}


def test_the_hash_is_that_of_the_effective_configuration(base: Path) -> None:
    plain = load_recipe(str(base))
    spelled_out = load_recipe(
        write(base, "base: base.yaml\noptimizer.nesterov: off\ntitle: other\nmachine.workers: 3")
    )
    assert plain.hash == spelled_out.hash == plain.with_seed(7).hash
    assert plain.hash != load_recipe(str(base), ["optimizer.lr=1e-3"]).hash


def test_what_is_written_reads_back_the_same(base: Path) -> None:
    recipe = load_recipe(str(base), ["data.root=no", "train.clip_norm=5e-4"])
    again = from_config(parse(recipe.to_yaml(), "text"), "text")
    assert again.config == recipe.config
    assert again.hash == recipe.hash
    assert again.id == recipe.id


def test_references_are_resolved(base: Path) -> None:
    recipe = load_recipe(write(base, "base: base.yaml\ntrain.eval_every: ${train.iterations}"))
    assert recipe.config["train"]["eval_every"] == 10
    with pytest.raises(InputError, match="cannot be resolved"):
        load_recipe(write(base, "base: base.yaml\ntrain.eval_every: ${train.nothing}"))
    with pytest.raises(InputError, match="cannot be resolved"):
        load_recipe(write(base, "base: base.yaml\ndata.root: ???"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=fast", r"(?s)'fast'.*optimizer\.lr.*a finite number"),
        ("optimizer.lr=-1", r"(?s)-1\.0.*optimizer\.lr.*above 0"),
        ("optimizer.lrr=1", r"(?s)'optimizer\.lrr'.*did you mean 'optimizer\.lr'"),
        ("modle.name=x", r"(?s)'modle'.*did you mean 'model'"),
        ("model.name=change/tinycdd", r"(?s)tinycdd.*did you mean 'change/tinycd'"),
        ("loss.dise.weight=1", r"(?s)'dise'.*did you mean 'dice'"),
        ("train.epochs=3", "exactly one"),
        ("train.accumulate=3", "divisor"),
        ("eval.protocols=[hole]", r"(?s)'hole'.*'whole'"),
        ("eval.splits=[]", "a length of at least 1"),
        ("task=[change]", "the name of a task"),
        ("base=3", "'base'"),
        ("task=chnge", r"(?s)'chnge'.*did you mean 'change'"),
        ("seed=one", "a whole number"),
        ("optimizer.lr", "key.path=value"),
    ],
)
def test_mistakes_are_refused_before_anything_is_built(base: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(str(base), [override])


def test_unknown_recipe_and_circles(base: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)'change/levir-tinycdd'.*did you mean 'change/levir-tinycd'"):
        load_recipe("change/levir-tinycdd")
    (base.parent / "deeper").mkdir()
    (base.parent / "deeper" / "base.yaml").write_text("base: ../base.yaml")
    assert load_recipe(str(base.parent / "deeper" / "base.yaml")).base == "local/base"
    (base.parent / "基线 二.yaml").write_text("base: base.yaml")
    assert load_recipe(str(base.parent / "基线 二.yaml")).id == "local/基线-二"
    (base.parent / "a.yaml").write_text("base: b.yaml")
    (base.parent / "b.yaml").write_text("base: a.yaml")
    with pytest.raises(InputError, match="circle"):
        load_recipe(str(base.parent / "a.yaml"))


def test_differences_name_exactly_what_differs(base: Path) -> None:
    a, b = load_recipe(str(base)), load_recipe(str(base), ["optimizer.lr=1", "augment.flip=null"])
    assert differences(a.config, b.config) == {
        "optimizer.lr": (5e-4, 1.0),
        "augment.flip.horizontal": (0.5, "(absent)"),
        "augment.flip.vertical": (0.5, "(absent)"),
    }
