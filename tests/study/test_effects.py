"""Effects of switches: known ones are found again, inseparable ones are named, and 95 % are 95 %."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from anban.record import RunFolder, find_runs
from anban.study.effects import Effects, Fit, dependent_groups, effects, f_tail, t_critical

STAMP = {"name": "whole", "split": "test", "size": "16x16", "threshold": 0.5}
BASE = {
    "model": {"name": "change/tiny", "fuse": "concat"},
    "loss": {"dice": {"weight": 0.0}},
    "optimizer": {"name": "adamw", "lr": 0.001},
}


def write_run(
    root: Path,
    recipe: Mapping[str, Any],
    score: float,
    seed: int = 0,
    *,
    fingerprint: str = "abc",
    stamp: Mapping[str, Any] = STAMP,
    **changes: Any,
) -> Path:
    """A finished run of the base with `recipe` (dotted keys) changed, and its score."""
    config = json.loads(json.dumps(BASE))
    for key, value in recipe.items():
        *parts, last = key.split(".")
        inner = config
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = value
    number = len(find_runs(root))
    folder = root / "change" / f"{number:04d}-s{seed}"
    folder.mkdir(parents=True)
    info = {
        "format": "anban-run/1", "id": folder.name, "recipe": "change/tiny", "task": "change", "state": "finished",
        "hash": json.dumps(config, sort_keys=True), "seed": seed, "commit": "c0ffee",
        "data": {"root": "/data/demo", "fingerprint": fingerprint}, "protocols": {"test/whole": dict(stamp)},
        "scores": [{"split": "test", "protocol": "whole", "checkpoint": "best", "name": "f1", "value": score}],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps({**info, **changes}))
    head = {"id": "change/tiny", "task": "change", "seed": seed, "machine": {"workers": number}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**head, **config}, sort_keys=False))
    return folder


def found_in(root: Path, **options: Any) -> list[Effects]:
    return effects([RunFolder.open(path) for path in find_runs(root)], "f1", **options)


def of_switch(table: Effects, *keys: str) -> Any:
    (effect,) = [e for e in table.effects if tuple(change.key for change in e.changes) == keys]
    return effect


GATED, DICE, SLOW = {"model.fuse": "gated"}, {"loss.dice.weight": 1.0}, {"optimizer.lr": 0.0003}


def write_design(
    root: Path,
    settings: Sequence[Mapping[str, Any]],
    gains: Mapping[str, float],
    seeds: int = 3,
    sd: float = 0.003,
) -> None:
    """Runs of each setting and seed, whose score is 0.8, the gain of each changed key, and the seed's noise."""
    rng = np.random.default_rng(1)
    for setting in settings:
        for seed in range(seeds):
            score = 0.8 + sum(gains[key] for key in setting) + rng.normal(0, sd)
            write_run(root, setting, score, seed)


def test_known_effects_are_found_again(tmp_path):
    gains = {"model.fuse": 0.03, "loss.dice.weight": -0.02, "optimizer.lr": 0.0}
    write_design(tmp_path, [{}, GATED, DICE, SLOW, GATED | DICE, GATED | DICE | SLOW], gains)
    (table,) = found_in(tmp_path)
    assert table.configurations == 6
    assert len(table.observations) == 18
    assert [[change.key for change in effect.changes] for effect in table.effects] == [[key] for key in gains]
    for effect in table.effects:
        gain = gains[effect.changes[0].key]
        assert effect.low < gain < effect.high
        assert effect.high - effect.low < 0.02
        assert effect.verdict == ("better" if gain > 0 else "worse" if gain < 0 else "not distinguishable")
        assert effect.p_adjusted >= effect.p
    fuse = of_switch(table, "model.fuse")
    assert (fuse.changes[0].before, fuse.changes[0].after) == ("concat", "gated")
    assert (len(fuse.runs), fuse.others) == (9, 9)
    assert not fuse.borrowed
    assert table.misfit is not None
    assert table.misfit > 0.05
    assert found_in(tmp_path)[0].effects == table.effects


def test_switches_always_changed_together_are_one_group(tmp_path):
    gains = {"model.fuse": 0.03, "loss.dice.weight": 0.01, "optimizer.lr": -0.02}
    write_design(tmp_path, [{}, GATED | DICE, SLOW, GATED | DICE | SLOW], gains)
    (table,) = found_in(tmp_path)
    both, alone = table.effects
    assert [(c.key, c.before, c.after) for c in both.changes] == [
        ("model.fuse", "concat", "gated"), ("loss.dice.weight", "0.0", "1.0")
    ]  # fmt: skip
    assert both.together
    assert both.low < 0.04 < both.high
    assert both.low > 0.03
    assert [change.key for change in alone.changes] == ["optimizer.lr"]
    assert alone.low < -0.02 < alone.high


def test_switches_that_depend_on_each_other_otherwise_are_one_group_too(tmp_path):
    # The third is on exactly where one of the first two is; the fourth is free.
    gains = {"model.fuse": 0.03, "loss.dice.weight": 0.01, "optimizer.lr": -0.02, "loss.bce.weight": 0.005}
    three = [{}, GATED | SLOW, DICE | SLOW]
    write_design(tmp_path, [*three, *(setting | {"loss.bce.weight": 2.0} for setting in three)], gains)
    (table,) = found_in(tmp_path)
    groups = [[change.key for change in effect.changes] for effect in table.effects]
    assert groups == [["model.fuse", "optimizer.lr"], ["loss.dice.weight", "optimizer.lr"], ["loss.bce"]]
    assert [effect.together for effect in table.effects] == [False, False, True]
    for effect, gain in zip(table.effects, (0.01, -0.01, 0.005), strict=True):
        assert effect.low < gain < effect.high
    assert [(c.before, c.after) for c in table.effects[2].changes] == [("false", "true")]


def test_one_on_where_the_other_is_off_is_one_group():
    a = np.array([0.0, 0.0, 1.0, 1.0, 0.0])
    b = np.array([0.0, 1.0, 0.0, 1.0, 1.0])
    groups, basis = dependent_groups(np.column_stack([a, b, 1 - a, a + b]))
    assert groups == [[0, 1, 2, 3]]
    assert basis == [0, 1]
    # Two pairs that only share the constant stay two groups.
    groups, _ = dependent_groups(np.column_stack([a, b, 1 - a, 1 - b]))
    assert groups == [[0, 2], [1, 3]]


def test_runs_measured_otherwise_stand_apart(tmp_path):
    for seed in range(3):
        for setting, gain in (({}, 0.0), (GATED, 0.05)):
            write_run(tmp_path, setting, 0.8 + gain + 0.001 * seed, seed)
            write_run(tmp_path, setting, 0.5 - gain + 0.001 * seed, seed, stamp={**STAMP, "size": "64x64"})
    write_run(tmp_path, {}, 0.1, 0, fingerprint="other")
    first, second, third = found_in(tmp_path)
    assert of_switch(first, "model.fuse").value == pytest.approx(0.05)
    assert of_switch(second, "model.fuse").value == pytest.approx(-0.05)
    assert third.alike.fingerprint == "other"
    assert not third.effects
    assert found_in(tmp_path, protocol="tiles-256") == []


def test_seed_machine_and_place_are_no_switches_and_the_last_of_equal_runs_counts(tmp_path):
    write_run(tmp_path, {"data.root": "/there", "eval.shown": 3}, 0.1, seed=0, hash="one")
    write_run(tmp_path, {"data.root": "/here"}, 0.8, seed=0, hash="one")
    write_run(tmp_path, {"data.root": "/here"}, 0.82, seed=1, hash="two")
    write_run(tmp_path, {}, 0.9, state="failed")
    write_run(tmp_path, {}, 0.9, scores=[])
    (table,) = found_in(tmp_path)
    assert [observation.score for observation in table.observations] == [0.8, 0.82]
    assert not table.effects


def test_a_number_of_many_levels_is_a_slope(tmp_path):
    rates = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
    for seed, noise in enumerate((-0.001, 0.001)):
        for rate in rates:
            write_run(tmp_path, {"optimizer.lr": rate}, 0.9 + 0.02 * np.log10(rate) + noise, seed)
    (table,) = found_in(tmp_path)
    (slope,) = table.effects
    assert slope.changes[0].after == "× 10"
    assert slope.value == pytest.approx(0.02)
    assert slope.others is None
    assert len(slope.runs) == 12
    for path in [path for path in find_runs(tmp_path) if "0.03" in (path / "recipe.yaml").read_text()]:
        (path / "run.json").unlink()
    (table,) = found_in(tmp_path)
    assert len(table.effects) == 4  # five levels are categories


def test_levels_are_counted_from_the_base_or_the_commonest(tmp_path):
    write_design(tmp_path, [GATED, GATED | DICE, {}], {"model.fuse": 0.03, "loss.dice.weight": 0.01})
    paths = find_runs(tmp_path)

    def before(**options: Any) -> str:
        effect = of_switch(found_in(tmp_path, **options)[0], "model.fuse")
        assert effect.low < (0.03 if effect.changes[0].before == "concat" else -0.03) < effect.high
        return effect.changes[0].before

    assert before() == "gated"
    assert before(reference={"model.name": "change/tiny", "model.fuse": "concat"}) == "concat"
    assert before(reference={"model.name": "change/tiny", "model.fuse": "sum"}) == "gated"
    for path in paths[:6]:  # the recipe that others name as theirs
        info = json.loads((path / "run.json").read_text())
        (path / "run.json").write_text(json.dumps({**info, "recipe": "change/gated", "base": "change/tiny"}))
    assert before() == "concat"


def test_arguments_of_another_part_are_no_switches_of_this_one(tmp_path):
    other = {"model": {"name": "change/other", "depth": 3}}
    write_design(tmp_path, [{}, GATED, other], {"model.fuse": 0.03, "model": -0.1})
    (table,) = found_in(tmp_path)
    assert [[change.key for change in effect.changes] for effect in table.effects] == [
        ["model"],
        ["model.fuse"],
    ]
    assert of_switch(table, "model").value == pytest.approx(-0.1, abs=0.01)
    assert of_switch(table, "model.fuse").others == 3


def test_without_repeats_there_is_no_interval_and_single_runs_borrow_their_spread(tmp_path):
    write_run(tmp_path, {}, 0.8)
    write_run(tmp_path, GATED, 0.83)
    (table,) = found_in(tmp_path)
    (effect,) = table.effects
    assert effect.value == pytest.approx(0.03)
    assert effect.low is effect.p is effect.p_adjusted is None
    assert effect.verdict == "not distinguishable"
    write_run(tmp_path, {}, 0.81, seed=1)
    write_run(tmp_path, {}, 0.79, seed=2)
    (effect,) = found_in(tmp_path)[0].effects
    assert effect.borrowed
    # The variance .0001 of three runs, two degrees of freedom: t = 4.303 times the deviation of a single run and a mean.
    assert effect.high - effect.value == pytest.approx(4.303 * 0.01 * np.sqrt(1 + 1 / 3), rel=1e-3)


def test_effects_that_do_not_add_up_are_told(tmp_path):
    for setting, score in (({}, 0.8), (GATED, 0.8), (DICE, 0.8), (GATED | DICE, 0.9)):
        for seed, noise in enumerate((-0.001, 0.0, 0.001)):
            write_run(tmp_path, setting, score + noise, seed)
    (table,) = found_in(tmp_path)
    assert table.misfit is not None
    assert table.misfit < 1e-6


def test_quantiles_of_t_and_f_are_those_of_the_tables():
    found = [t_critical(0.95, freedom) for freedom in (1, 2, 4, 30, 1e4)]
    assert found == pytest.approx([12.706, 4.303, 2.776, 2.042, 1.960], abs=1e-3)
    assert f_tail(4.303**2, 1, 2) == pytest.approx(0.05, abs=1e-4)
    assert f_tail(3.490, 3, 12) == pytest.approx(0.05, abs=1e-4)
    assert f_tail(0.0, 3, 12) == 1


def test_two_groups_of_runs_give_the_test_of_welch():
    one, two = np.array([0.1, 0.3, 0.2, 0.6]), np.array([0.5, 0.9])
    fit = Fit.of(np.array([[0.0]] * 4 + [[1.0]] * 2), np.concatenate([one, two]))
    value, error, freedom, _ = fit.contrast(np.ones(1))
    assert value == pytest.approx(two.mean() - one.mean())
    assert error == pytest.approx(np.sqrt(one.var(ddof=1) / 4 + two.var(ddof=1) / 2))
    # Satterthwaite's degrees of freedom for equal variances, from the sizes alone.
    assert freedom == pytest.approx((1 / 4 + 1 / 2) ** 2 / ((1 / 4) ** 2 / 3 + (1 / 2) ** 2 / 1))


def designs() -> dict[str, np.ndarray]:
    arms = np.vstack([np.zeros(5), np.eye(5)])
    return {
        "arms against a base, 2 seeds": np.repeat(arms, 2, axis=0),
        "arms against a base, 3 seeds": np.repeat(arms, 3, axis=0),
        "single runs and a base of 3": np.vstack([np.zeros((2, 5)), arms]),
        "random settings, 2 seeds": np.repeat(
            np.random.default_rng(3).random((12, 5)) < 0.4, 2, axis=0
        ).astype(float),
    }


@pytest.mark.parametrize("name", designs())
def test_coverage(name):
    columns, rng = designs()[name], np.random.default_rng(5)
    truth = rng.normal(0, 1, columns.shape[1])
    inside = np.zeros((400, len(truth)))
    for study in inside:
        fit = Fit.of(columns, columns @ truth + rng.normal(0, 1, len(columns)))
        for number, factors in enumerate(np.eye(len(truth))):
            value, error, freedom, _ = fit.contrast(factors)
            assert error is not None
            study[number] = abs(value - truth[number]) <= t_critical(0.95, freedom) * error
    assert 0.93 <= inside.mean() <= 0.975
    assert inside.mean(axis=0).min() >= 0.91
