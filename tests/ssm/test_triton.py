"""The Triton kernels against the recurrence in float64.

Without a GPU they run in Triton's interpreter, which is chosen when Triton is imported: the cases run in processes of their own
(this file as a script), one per group, and tests look at the errors that these print. The compiler is asked too, since it
refuses things that the interpreter takes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anban.ssm.backends import Problem, triton
from anban.ssm.orders import BIDIRECTIONAL, CROSS, ROTATED, UNIDIRECTIONAL, Walk, walks
from anban.ssm.scan import selective_scan_2d

STEPS = 8  # instead of 32: the interpreter is slow, and what happens between chunks is to be seen in short sequences
HALF = {"x": "bfloat16", "delta": "float16", "B": "bfloat16", "C": "float32"}
ROUNDING = {
    torch.float32: 2e-6,
    torch.float16: 5e-4 + 2e-6,
    torch.bfloat16: 4e-3,
}  # of a result, over the largest one


class Case(NamedTuple):
    """A problem on an image (a sequence, if orders are given as a number), and how it is cut."""

    height: int = 3
    width: int = 5
    channels: int = 3
    states: int = 2
    orders: tuple[str, ...] | int = CROSS
    batch: int = 1
    shared: bool = True
    constant: str = ""  # B, C or BC
    without: str = ""  # D, bias or softplus
    positive: bool = False  # A > 0
    shift: float = 0.0  # of the raw steps
    types: dict[str, str] = {}
    transposed: bool = False  # channels first in memory
    segments: int = 1


GROUPS = {
    "orders": {
        "cross": Case(3, 3, states=1),
        "cross in segments": Case(states=1, segments=2),
        "rotated, an x each": Case(2, 3, batch=2, orders=ROTATED, shared=False),
        "one order twice, in segments": Case(2, 5, orders=UNIDIRECTIONAL[:2], segments=2),
        "two orders twice, in segments": Case(3, 4, orders=BIDIRECTIONAL, segments=2),
        "three that share nothing": Case(3, 3, orders=("row-leftward", "row-upward", "column"), segments=2),
        "one line": Case(1, 9, orders=("row", "column-reversed"), segments=2),
        "lines as long as tiles": Case(2, 8, states=1, orders=("row", "row-reversed"), segments=2),
    },
    "shapes": {
        "one step": Case(1, 1, channels=1, states=1, orders=("row",)),
        "one step, 16 states": Case(1, 1, channels=33, states=16, orders=2, shared=False),
        "3 states": Case(1, 10, states=3, orders=("row-reversed",), segments=2),
        "16 states": Case(1, 5, states=16, orders=1),
        "17 states": Case(1, 3, channels=2, states=17, orders=1),
        "64 states": Case(1, 2, channels=2, states=64, orders=1),
        "two blocks of channels": Case(2, 4, channels=70, orders=("row", "row-reversed")),
        "sequences, channels first": Case(1, 19, orders=2, shared=False, transposed=True, segments=3),
    },
    "fields": {
        "constant B": Case(3, 3, orders=("row", "column"), constant="B", segments=2),
        "constant B and C": Case(1, 9, orders=2, shared=False, constant="BC", segments=2),
        "no skip": Case(3, 3, orders=("row",), without="D"),
        "no bias": Case(3, 3, orders=("row",), without="bias"),
        "no softplus": Case(3, 3, orders=("column-reversed",), without="softplus"),
        "growing": Case(1, 20, states=3, orders=("row", "row-reversed"), positive=True, segments=2),
        "growing, in one piece": Case(1, 20, states=3, orders=("row", "row-reversed"), positive=True),
        "huge steps": Case(1, 12, orders=("row",), shift=1e4, segments=2),
        "tiny steps": Case(1, 12, orders=("row",), shift=-12.0, segments=2),
        "half precision": Case(2, 5, types=HALF),
        "half precision, in segments": Case(2, 5, orders=("row", "row-reversed"), types=HALF, segments=2),
    },
}
CASES = {name: case for group in GROUPS.values() for name, case in group.items()}


# The problem and what it should give --------------------------------------------------------------------------------------


def build(case: Case, device: str = "cpu") -> tuple[Problem, Tensor, Tensor]:
    """The problem, and gradients of its results."""
    generator = torch.Generator().manual_seed(7)
    pixels, batch, d, N = case.height * case.width, case.batch, case.channels, case.states
    if isinstance(case.orders, int):
        K, paths = case.orders, (Walk(0, 1, pixels, pixels),) * case.orders
    else:
        K, paths = len(case.orders), walks(case.orders, case.height, case.width)
    Kx = 1 if case.shared else K

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    fields: dict[str, Any] = {
        "x": draw(batch, pixels, Kx, d),
        "delta": draw(batch, pixels, K, d) + case.shift,
        "A": torch.rand(K, d, N, generator=generator) * (0.3 if case.positive else -2.0),
        "B": draw(K, d, N) if "B" in case.constant else draw(batch, pixels, K, N + 1)[..., 1:],
        "C": draw(K, d, N) if "C" in case.constant else draw(batch, pixels, K, N),
        "D": None if case.without == "D" else draw(K, d),
        "bias": None if case.without == "bias" else draw(K, d),
    }
    for name, dtype in case.types.items():
        fields[name] = fields[name].to(getattr(torch, dtype))
    if case.transposed:
        fields = {
            n: t.transpose(1, -1).contiguous().transpose(1, -1) if n in "x delta B C" else t
            for n, t in fields.items()
        }
    problem = Problem(**fields, softplus=case.without != "softplus", walks=paths)
    dy, dlast = draw(batch, pixels, Kx, d), draw(batch, K, d, N)
    return problem.map(lambda t: framed(t.to(device))[0]), framed(dy.to(device))[0], dlast.to(device)


def oracle(problem: Problem) -> tuple[Tensor, Tensor]:
    """The recurrence, written down step by step; float64 and differentiable."""
    x, delta, A, B, C, D, bias, *_ = (getattr(problem, field) for field in triton.Gradients._fields)
    batch, pixels, _, d = delta.shape
    y: dict[tuple[int, int], Any] = {}
    ends = []
    for k, walk in enumerate(problem.walks):
        kx = 0 if x.shape[2] == 1 else k
        h = torch.zeros(batch, d, A.shape[2], dtype=x.dtype, device=x.device)
        for t in range(pixels):
            pixel = walk.start + (t // walk.count) * walk.jump + (t % walk.count) * walk.step
            s = delta[:, pixel, k] + (0 if bias is None else bias[k])
            s = F.softplus(s, threshold=60) if problem.softplus else s
            b, c = (m[k][None] if m.dim() == 3 else m[:, pixel, k, None, :] for m in (B, C))
            h = torch.exp(s[..., None] * A[k]) * h + (s * x[:, pixel, kx])[..., None] * b
            out = (h * c).sum(-1) + (0 if D is None else D[k] * x[:, pixel, kx])
            y[pixel, kx] = y.get((pixel, kx), 0) + out
        ends.append(h)
    rows = [torch.stack([y[pixel, kx] for kx in range(x.shape[2])], 1) for pixel in range(pixels)]
    return torch.stack(rows, 1), torch.stack(ends, 1)


def expected(problem: Problem, dy: Tensor, dlast: Tensor) -> dict[str, Tensor]:
    """The results, and by autograd the gradients of all fields, in float64."""
    leaves = problem.map(lambda t: t.detach().double().requires_grad_())
    names = [
        name for name, t in zip(triton.Gradients._fields, leaves.tensors(), strict=True) if t is not None
    ]
    fields = [t for t in leaves.tensors() if t is not None]
    y, last = oracle(leaves)
    grads = torch.autograd.grad([y, last], fields, [dy.double(), dlast.double()])
    return {"y": y.detach(), "last": last.detach(), **{f"d{n}": g for n, g in zip(names, grads, strict=True)}}


# What it gives ------------------------------------------------------------------------------------------------------------


FRAME = 4096  # elements of NaN before and behind a tensor


def framed(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor, with its strides, in the middle of NaN; and all of it. Gaps between its elements are NaN as well."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    whole = tensor.new_full((span + 2 * FRAME,), float("nan"))
    return whole.as_strided(tensor.shape, tensor.stride(), FRAME).copy_(tensor), whole


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory is full of NaN, so that what nobody writes is seen; and what is written beside it is seen as well."""
    wholes: list[Tensor] = []

    def poison(make: Any) -> Any:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            tensor: Tensor = make(*args, **kwargs)
            if not tensor.is_floating_point() or tensor.numel() == 0:
                return tensor
            tensor, whole = framed(tensor.fill_(float("nan")))
            wholes.append(whole)
            return tensor

        return made

    with contextlib.ExitStack() as stack:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
            stack.enter_context(mock.patch.object(owner, name, poison(getattr(owner, name))))
        yield
    assert wholes
    assert all(bool(whole[:FRAME].isnan().all() and whole[-FRAME:].isnan().all()) for whole in wholes)


def given(problem: Problem, dy: Tensor, dlast: Tensor, segments: int | None) -> dict[str, Tensor]:
    with poisoned():
        y, last, saved = triton.forward(problem, save=True, segments=segments)
        gradients = triton.backward(problem, saved, dy, dlast, segments=segments)
    grads = {f"d{n}": g for n, g in gradients._asdict().items() if g is not None}
    return {"y": y, "last": last, "saved": saved, **grads}


def errors(case: Case, device: str = "cpu") -> dict[str, float]:
    """Of every result the largest error over what rounding allows; above 1 it is wrong."""
    problem, dy, dlast = build(case, device)
    before = dlast.clone()
    want, have = expected(problem, dy, dlast), given(problem, dy, dlast, case.segments)
    assert torch.equal(dlast, before)
    assert bool(have.pop("saved").isfinite().all()), "a state was not saved"
    assert want.keys() == have.keys()
    for name, tensor in zip(triton.Gradients._fields, problem.tensors(), strict=True):
        if tensor is not None:
            assert have[f"d{name}"].dtype == tensor.dtype
            assert have[f"d{name}"].stride() == torch.empty_like(tensor).stride()
    assert have["y"].dtype == have["last"].dtype == torch.float32
    return {name: _error(have[name], ref) / ROUNDING[have[name].dtype] for name, ref in want.items()}


def _error(have: Tensor, want: Tensor) -> float:
    assert have.shape == want.shape
    scale = max(float(want.abs().max()), 1e-30)
    error = float((have.double() - want).abs().max()) / scale
    return error if error == error else float("inf")


def agreements(device: str = "cpu") -> dict[str, float]:
    """Repeated runs bit by bit; cut into segments as in one piece; without states to save; through the operator."""
    case = Case(3, 3, orders=("row", "column"), states=1)
    problem, dy, dlast = build(case, device)
    dlast = torch.zeros_like(dlast)  # that the operator on images does not return
    one, again, cut = (given(problem, dy, dlast, segments) for segments in (1, 1, 2))
    cut_again = given(problem, dy, dlast, 99)  # more than it has steps to keep
    with mock.patch.object(triton, "REACH", 1):
        wide = given(problem, dy, dlast, 1)
    found = {
        "repeated": float(all(torch.equal(one[n], again[n]) for n in one)),
        "repeated in segments": float(all(torch.equal(cut[n], cut_again[n]) for n in cut)),
        "wide": float(all(torch.equal(one[n], wide[n]) for n in one)),
        "cut": max(_error(cut[n], one[n].double()) for n in one),
    }
    with poisoned():
        y, last, saved = triton.forward(problem, save=False)
    found["without saving"] = float(
        torch.equal(y, one["y"]) and torch.equal(last, one["last"]) and saved.numel() == 0
    )
    idle, _, _ = build(Case(1, 24, states=1, orders=("row",), positive=True, shift=200.0), device)
    idle.x[:, :-1] = 0.0  # no state until the last step, while the decay of a segment is infinite in float32
    found["idle"] = _error(triton.forward(idle, False, segments=3)[0], oracle(idle.map(Tensor.double))[0])
    with mock.patch.object(triton, "STEPS", 32):
        lines = Case(1, 37, channels=2, states=1, orders=("row", "row-reversed"), segments=2)
        found["usual steps"] = max(errors(lines, device).values())
    leaves = problem.map(lambda t: t.detach().requires_grad_())
    fields = [t.unflatten(1, (3, 3)) if t.dim() == 4 else t for t in leaves.tensors() if t is not None]
    out = selective_scan_2d(fields[0].squeeze(3), *fields[1:], backend="triton", orders=case.orders)
    torch.autograd.backward([out], [dy.view_as(out)])
    grads = {
        f"d{n}": t.grad
        for n, t in zip(triton.Gradients._fields, leaves.tensors(), strict=True)
        if t is not None
    }
    found["through the operator"] = float(torch.equal(out.detach().view_as(y), y))
    found["through the operator, backward"] = float(all(torch.equal(one[n], g) for n, g in grads.items()))
    return found


AGREE = {
    "repeated": 1.0,
    "repeated in segments": 1.0,
    "wide": 1.0,
    "without saving": 1.0,
    "through the operator": 1.0,
    "through the operator, backward": 1.0,
    "cut": pytest.approx(0.0, abs=2e-6),
    "idle": pytest.approx(0.0, abs=2e-6),
    "usual steps": pytest.approx(0.0, abs=1.0),
}


# What the compiler does with it -------------------------------------------------------------------------------------------


def variants(compile_all: bool) -> dict[str, int]:
    """How many variants of each kernel the shapes of a network ask for, and that they compile; needs no GPU."""
    from triton import knobs, runtime
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    class Driver:
        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    seen: dict[str, set[str]] = {}

    def hook(key: str, **rest: Any) -> bool:
        seen.setdefault(rest["fn"].name.rsplit(".", 1)[-1], set()).add(key)
        return not compile_all

    def compile_only(self: JITFunction, grid: Any) -> Any:  # type: ignore[type-arg]
        return lambda *args, **kwargs: self.run(*args, grid=grid, warmup=True, **kwargs)

    runtime.driver.set_active(Driver())
    knobs.runtime.jit_cache_hook = hook
    JITFunction.__getitem__ = compile_only  # type: ignore[method-assign]
    if compile_all:
        every = [
            Case(8, 8, 64, 1, types={"x": "bfloat16", "delta": "bfloat16"}, segments=2),
            Case(7, 7, 1, 1, ("row",), without="bias"),
            Case(1, 7, 40, 16, 2, shared=False, constant="B", without="softplus", segments=2),
            Case(7, 7, 33, 3, constant="BC", without="D", types=HALF, segments=2),
        ]
    else:
        sizes = ((16, 16), (16, 24), (32, 40), (56, 56), (64, 88), (120, 136))
        every = [Case(h, w, 64, 4, segments=s) for h, w in sizes for s in (2, 3)]
    for case in every:
        problem, dy, dlast = build(case)
        _, _, saved = triton.forward(problem, save=True, segments=case.segments)
        triton.backward(problem, saved, dy, dlast, segments=case.segments)
    return {name: len(keys) for name, keys in seen.items()}


# Tests --------------------------------------------------------------------------------------------------------------------


def _process(*arguments: str, interpreted: bool = True, **more: str) -> Any:
    """What this file as a script says to the arguments."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": str(int(interpreted)), **more}
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
needs_triton = pytest.mark.skipif(
    triton.unusable(torch.device("cuda"), torch.float64) == "Triton is not installed", reason="no Triton"
)


@needs_triton
@pytest.mark.parametrize("group", GROUPS)
def test_interpreted_against_the_recurrence(group: str) -> None:
    found = _process(group)
    assert found.keys() == GROUPS[group].keys()
    wrong = {name: of for name, of in found.items() if max(of.values()) > 1}
    assert not wrong


@needs_triton
def test_interpreted_agreements() -> None:
    assert _process("agreements") == AGREE


@needs_triton
def test_no_variant_per_length(tmp_path: Path) -> None:
    found = _process("variants", interpreted=False, TRITON_CACHE_DIR=str(tmp_path))
    # the first launch of a kernel, and the ones after it, differ in nothing but numbers
    assert found == {"forward": 1, "summarise": 2, "carry": 2, "backward": 1}


@needs_triton
@pytest.mark.slow
def test_compiles(tmp_path: Path) -> None:
    found = _process("compile", interpreted=False, TRITON_CACHE_DIR=str(tmp_path))
    assert min(found.values()) >= 2


def test_importing_the_backend_does_not_import_triton() -> None:
    code = "import sys, anban.ssm.backends.triton; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@needs_triton
def test_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert triton.unusable(cpu, torch.float32) == "its kernels run on a GPU, not on cpu"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton.unusable(cpu, torch.float32) is None
    assert triton.unusable(cpu, torch.float64) == "it computes in float32, which is too little for float64"
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert (
        triton.unusable(cuda, torch.bfloat16)
        == "Triton needs a GPU of compute capability 8.0, this one has 7.5"
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert triton.unusable(cuda, torch.bfloat16) is None
    monkeypatch.setattr("anban.ssm.backends.triton.find_spec", lambda name: None)
    assert triton.unusable(cuda, torch.float32) == "Triton is not installed"


@pytest.mark.parametrize(
    ("orders", "groups"),
    [
        (CROSS, (((0, 0), (2, 1)), ((1, 0), (3, 1)))),
        (UNIDIRECTIONAL, (((0, 0), (1, 0), (2, 0), (3, 0)),)),
        (BIDIRECTIONAL, (((0, 0), (1, 0), (2, 1), (3, 1)),)),
        (ROTATED, (((0, 0), (2, 1)), ((1, 0), (3, 1)))),
        (("row", "row-upward"), (((0, 0),), ((1, 0),))),
    ],
)
def test_directions_that_share_pixels_go_together(orders: tuple[str, ...], groups: Any) -> None:
    paths = walks(orders, 5, 7)
    assert triton._together(paths, 35) == groups
    for group in groups:  # mirrored: at the end of one is the beginning of the other
        plain = paths[group[0][0]]
        for k, mirrored in group:
            for t in range(35):
                assert paths[k].pixel(t) == plain.pixel(34 - t if mirrored else t)


def test_a_walk_that_ends_within_a_line_has_no_reverse() -> None:
    assert triton._reverse(Walk(0, 1, 4, 4), 10) is None


@pytest.mark.parametrize(
    ("batch", "side", "segments"),
    [(1, 56, 49), (8, 56, 49), (32, 56, 20), (512, 56, 2), (704, 56, 1), (1, 7, 1)],
)
def test_short_of_programs_a_sequence_is_cut(
    batch: int, side: int, segments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "_multiprocessors", lambda device: 132)
    empty = torch.empty(batch, side * side, 4, 1, device="meta").expand(-1, -1, -1, 192)
    A = torch.empty(4, 192, 1, device="meta")
    problem = Problem(
        empty[:, :, :1], empty, A, empty[..., :1], empty[..., :1], None, None, True, walks(CROSS, side, side)
    )
    prepared = triton._Prepared(problem, None)
    assert prepared.segments == segments
    assert (prepared.segments - 1) * prepared.size < side * side <= prepared.segments * prepared.size


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_gpu_against_the_recurrence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "STEPS", STEPS)
    found = errors(CASES[name], "cuda")
    assert max(found.values()) <= 1, found


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("states", [1, 16])
@pytest.mark.parametrize("segments", [1, None, 10])
def test_gpu_on_a_feature_map(states: int, segments: int | None) -> None:
    case = Case(29, 56, 96, states, batch=2)
    problem, dy, dlast = build(case, "cuda")
    want, have = expected(problem, dy, dlast), given(problem, dy, dlast, segments)
    again = given(problem, dy, dlast, segments)
    assert all(torch.equal(have[name], again[name]) for name in have)
    found = {name: _error(have[name], ref) for name, ref in want.items()}
    assert max(found.values()) <= 5e-6, found


@on_gpu
@pytest.mark.gpu
def test_gpu_agreements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "STEPS", STEPS)
    assert agreements("cuda") == AGREE


@on_gpu
@pytest.mark.gpu
def test_gpu_under_compile() -> None:
    problem, _, _ = build(Case(8, 9, 40, 4), "cuda")
    x, *rest = (t.unflatten(1, (8, 9)) if t is not None and t.dim() == 4 else t for t in problem.tensors())
    scan = torch.compile(lambda x: selective_scan_2d(x.squeeze(3), *rest, backend="triton"), fullgraph=True)
    assert torch.equal(scan(x), selective_scan_2d(x.squeeze(3), *rest, backend="triton"))


def main(what: str) -> None:
    if what == "variants" or what == "compile":
        print(json.dumps(variants(what == "compile")))
        return
    triton.STEPS = STEPS
    print(
        json.dumps(agreements() if what == "agreements" else {n: errors(c) for n, c in GROUPS[what].items()})
    )


if __name__ == "__main__":
    main(sys.argv[1])
