"""The golden runner: weights by name, inputs, tolerances, comparison, the command."""

from __future__ import annotations

import json
import math
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anban.errors import InputError
from anban.testing import golden

COPIES = Path(__file__).parents[1] / "golden"
OFFICIAL = ("someone/somewhere", "Net")


class Net(nn.Module):
    """y = weight * a, and b."""

    def __init__(self, inputs: int, outputs: int = 2):
        super().__init__()
        self.lin = nn.Linear(inputs, outputs)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Any]:
        return {"main": self.lin(a), "rest": [b, (b + 1,)]}


def write(folder: Path, *, name: str = "tiny", **changes: Any) -> Path:
    """A case of `Net` as a reference would have stored it; `changes` replace parts of its JSON."""
    weight, bias = golden.fill("lin.weight", (2, 3)), golden.fill("lin.bias", (2,))
    a, b = golden.fill_input(f"{name}:a", (4, 3), 0, 2), golden.fill_input(f"{name}:b", (5,), 0, 9)
    y = a @ weight.T + bias
    counts = np.floor(b).astype(np.int64)
    wide = (a.astype(np.float64) @ weight.T + bias).astype(np.float32)
    arrays = {"y": y, "y1": counts, "y2": counts + 1, "tap:lin": y.reshape(-1)[::3], "y_f64": wide}
    data = {
        "schema": "golden-case/1",
        "case": name,
        "area": "test",
        "source": {"repo": "https://github.com/someone/somewhere", "class": "Net"},
        "constructor": {"args": [3], "argument_names": ["inputs"], "kwargs": {"outputs": 2}},
        "mode": "eval",
        "dtype": "float32",
        "inputs": [
            {
                "name": "a",
                "rule": f"fill_input('{name}:a', shape, low, high)",
                "shape": [4, 3],
                "low": 0,
                "high": 2,
            },
            {
                "name": "b",
                "rule": f"fill_input('{name}:b', shape, low, high) then floor_int64",
                "shape": [5],
                "low": 0,
                "high": 9,
                "cast": "floor_int64",
                "key": None,
            },
        ],
        "outputs": [
            {"name": "y", "shape": [4, 2], "dtype": "float32", "stride": 1},
            {"name": "y1", "shape": [5], "dtype": "int64", "stride": 1},
            {"name": "y2", "shape": [5], "dtype": "int64", "stride": 1},
            {"name": "tap:lin", "shape": [4, 2], "dtype": "float32", "stride": 3},
            {"name": "y_f64", "shape": [4, 2], "dtype": "float32", "stride": 1},
        ],
        "state_dict": [["lin.weight", [2, 3]], ["lin.bias", [2]]],
    } | changes
    if len(data["outputs"]) == 5:  # all of them: y_f64 comes from a run whose other results have no place
        data["outputs"] = [o for o in data["outputs"] if o["name"] != "y_f64"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(data))
    np.savez(folder / f"{name}.npz", allow_pickle=False, **arrays)
    return folder / f"{name}.json"


def status(path: Path, adapter: golden.Adapter | None = None) -> golden.CaseResult:
    (case,) = golden.find_cases([path])
    return golden.check(case, {OFFICIAL: adapter or golden.Network(Net)})


# ---- the rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "formula"),
    [
        ("a.conv.weight", (4, 3, 3, 3), lambda r, n: n / math.sqrt(27)),
        ("pos_embedding", (1, 8, 32), lambda r, n: n / math.sqrt(256)),
        ("a.bn.weight", (6,), lambda r, n: 1 + 0.1 * n),
        ("a.bn.bias", (6,), lambda r, n: 0.1 * n),
        ("scale", (), lambda r, n: 0.1 * n),
        ("a.bn.running_mean", (6,), lambda r, n: 0.1 * n),
        ("a.bn.running_var", (6,), lambda r, n: 0.5 + r.random(6)),
        ("b.A_logs", (5, 4), lambda r, n: np.log([1, 2, 3, 4]) + 0.1 * n),
        ("b.Ds", (5,), lambda r, n: 1 + 0.1 * n),
        ("b.D", (2, 5), lambda r, n: 1 + 0.1 * n),
        ("b.dt_projs_bias", (4, 5), lambda r, n: -4 + 0.5 * n),
        ("b.dt_proj.bias", (5,), lambda r, n: -4 + 0.5 * n),
        ("b.dt_proj.weight", (5, 2), lambda r, n: n / math.sqrt(2)),
    ],
)
def test_every_kind_of_parameter_has_its_formula(name: str, shape: tuple[int, ...], formula: Any) -> None:
    draws = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode("utf-8"))))
    noise = draws.standard_normal(shape)
    filled = golden.fill(name, shape)
    assert filled.dtype == np.float32
    assert filled.shape == shape
    np.testing.assert_array_equal(filled, np.asarray(formula(draws, noise), dtype=np.float32))


def test_batch_counters_are_zero_integers() -> None:
    assert golden.fill("bn.num_batches_tracked", ()) == np.int64(0)
    assert golden.fill("bn.num_batches_tracked", ()).dtype == np.int64


def test_inputs_lie_in_their_range_and_follow_their_name() -> None:
    a, b = golden.fill_input("case:a", (100,), 2, 3), golden.fill_input("case:b", (100,), 2, 3)
    assert a.min() >= 2
    assert a.max() < 3
    assert a.dtype == np.float32
    assert not np.array_equal(a, b)
    draws = np.random.Generator(np.random.PCG64(zlib.crc32(b"input:case:a")))
    np.testing.assert_array_equal(a, (2 + draws.random(100)).astype(np.float32))


# ---- a case ---------------------------------------------------------------------------------------------------------


def test_a_network_meets_its_case_with_taps_strides_and_integers(tmp_path: Path) -> None:
    result = status(write(tmp_path))
    assert result.status == "ok", result.why
    assert [output.name for output in result.outputs] == ["y", "y1", "y2", "tap:lin"]
    assert result.absolute is not None
    assert result.absolute < 1e-6


def test_float64_outputs_come_from_a_float64_run(tmp_path: Path) -> None:
    class Single(Net):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
            scores: Tensor = self.lin(a) + (1.0 if a.dtype == torch.float64 else 0.0)
            return scores

    outputs = [
        {"name": "y", "shape": [4, 2], "dtype": "float32", "stride": 1},
        {"name": "y_f64", "shape": [4, 2], "dtype": "float32", "stride": 1},
    ]
    result = status(write(tmp_path, outputs=outputs), golden.Network(Single))
    assert [output.ok for output in result.outputs] == [True, False]
    assert result.outputs[1].absolute == pytest.approx(1.0, abs=1e-5)


def test_train_mode_and_precision_reach_the_network(tmp_path: Path) -> None:
    seen: list[tuple[bool, torch.dtype, torch.dtype]] = []

    class Watched(Net):
        def forward(self, a: Tensor, b: Tensor) -> dict[str, Any]:
            seen.append((self.training, a.dtype, b.dtype))
            return super().forward(a, b)

    assert status(write(tmp_path, mode="train", dtype="float64"), golden.Network(Watched)).status == "ok"
    assert seen == [(True, torch.float64, torch.int64)]


def test_a_function_returns_its_outputs_by_name_and_is_held_tighter(tmp_path: Path) -> None:
    outputs = [{"name": "y1", "shape": [5], "dtype": "int64", "stride": 1}]
    path = write(tmp_path, mode="function", outputs=outputs, constructor={"factor": 1})

    def function(case: golden.Case) -> golden.Outputs:
        return {"y1": case.inputs()["b"] * case.arguments()["factor"], "more": torch.zeros(1)}

    assert status(path, function).status == "ok"
    (case,) = golden.find_cases([path])
    assert case.tolerance("y1") == (1e-5, 1e-5)


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({}, 1e-4),
        ({"float64_check": {"what": "...", "y": {"max_abs_diff": 3e-5}}}, 3e-4),
        ({"float64_check": {"y": {"max_abs_diff": 3e-9}}}, 1e-4),
        ({"float32_noise": {"meaning": "...", "y": 1e-3}}, None),
    ],
    ids=["default", "rounding", "small rounding", "relative noise"],
)
def test_the_case_s_own_rounding_sets_the_floor(
    tmp_path: Path, changes: Any, tolerance: float | None
) -> None:
    (case,) = golden.find_cases([write(tmp_path, **changes)])
    expected = 1e-2 * float(np.abs(case.stored["y"]).max()) if tolerance is None else tolerance
    assert case.tolerance("y") == pytest.approx((expected, 1e-4))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda y: y + 3e-4, "off"),
        (lambda y: y[:3], "shape"),
        (lambda y: y * torch.tensor(float("nan")), "off"),
        (lambda y: y.index_fill(0, torch.tensor([1]), float("inf")), "off"),
    ],
    ids=["value", "shape", "nan", "inf"],
)
def test_a_wrong_output_fails(tmp_path: Path, wrong: Any, why: str) -> None:
    class Wrong(Net):
        def forward(self, a: Tensor, b: Tensor) -> dict[str, Any]:
            outputs = super().forward(a, b)
            return outputs | {"main": wrong(outputs["main"])}

    result = status(write(tmp_path), golden.Network(Wrong))
    assert result.status == "FAIL"
    assert result.why is not None
    assert why in result.why
    assert [output.name for output in result.outputs if not output.ok] == ["y"]


def test_integers_are_compared_exactly_and_fragile_positions_passed_over(tmp_path: Path) -> None:
    class Off(Net):
        def forward(self, a: Tensor, b: Tensor) -> dict[str, Any]:
            outputs = super().forward(a, b)
            return outputs | {"rest": [b + torch.tensor([0, 0, 1, 0, 0]), b + 1]}

    assert status(write(tmp_path), golden.Network(Off)).status == "FAIL"
    fragile = {"what": "y1 switches where ...", "in_stored_slice": [2]}
    result = status(write(tmp_path, fragile_pixels=fragile), golden.Network(Off))
    assert result.status == "ok"
    assert result.outputs[1].fragile == 1


def test_complex_outputs_are_compared_by_modulus(tmp_path: Path) -> None:
    path = write(tmp_path)
    (case,) = golden.find_cases([path])
    case.stored["z"] = np.array([1 + 1j], dtype=np.complex64)
    result = golden.compare(case, {"name": "z", "shape": [1], "stride": 1}, torch.tensor([1 + 1.5j]))
    assert not result.ok
    assert result.absolute == pytest.approx(0.5)


def test_what_an_adapter_cannot_do_is_unsupported_and_what_it_breaks_on_fails(tmp_path: Path) -> None:
    path = write(tmp_path)
    (case,) = golden.find_cases([path])
    assert golden.check(case, {}).status == "unsupported"
    assert status(write(tmp_path, constructor={"inputs": 3, "strange": 1})).status == "unsupported"
    assert status(write(tmp_path, state_dict=[["other", [2]]])).status == "FAIL"

    def short(case: golden.Case) -> golden.Outputs:
        return {"y": case.inputs()["a"]}

    result = status(path, short)
    assert result.status == "FAIL"
    assert result.why is not None


def test_positional_arguments_take_the_official_order(tmp_path: Path) -> None:
    (case,) = golden.find_cases([write(tmp_path, constructor={"args": [3, 4]})])
    assert case.arguments(("inputs", "outputs")) == {"inputs": 3, "outputs": 4}
    with pytest.raises(golden.UnsupportedError):
        case.arguments()


# ---- finding and reporting ------------------------------------------------------------------------------------------


def test_folders_are_searched_and_other_schemas_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "er", name="one")
    write(tmp_path, name="two")
    (tmp_path / "index.json").write_text('{"schema": "golden-index/1"}')
    (tmp_path / "list.json").write_text("[]")
    assert sorted(case.name for case in golden.find_cases([tmp_path])) == ["one", "two"]


def test_bad_paths_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no golden case"):
        golden.find_cases([tmp_path])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        golden.find_cases([tmp_path])
    assert golden.main([str(tmp_path / "absent")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_adapters_are_found_by_listing_folders() -> None:
    known = golden.adapters()
    assert ("AndreaCodegoni/Tiny_model_4_CD", "ChangeClassifier") in known
    assert all(callable(adapter) for adapter in known.values())


def test_the_command_prints_and_exits_by_the_worst_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in ("json", "npz"):
        shutil.copy(COPIES / "change" / f"tinycd_b4.{suffix}", tmp_path)
    assert golden.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.split()[:2] == ["ok", "tinycd_b4"]
    write(tmp_path, name="stranger")
    assert golden.main([str(tmp_path), "--json"]) == 1
    rows = {row["case"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["tinycd_b4"]["status"] == "ok"
    assert rows["tinycd_b4"]["absolute"] < 1e-4
    assert rows["stranger"]["status"] == "unsupported"
    assert rows["stranger"]["absolute"] is None
