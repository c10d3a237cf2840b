"""The vector kernels for processors: threads, processes, the cache of compiled kernels, PyTorch's transformations."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from oracle import CROSS, Case, make
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anban.errors import InputError
from anban.ssm import backends, selective_scan, selective_scan_2d
from anban.ssm.backends import cpu
from anban.ssm.backends.cpu import build
from anban.ssm.scan import flops

EPSILON = 2e-6


def run(case: Case, backend: str = "cpu") -> list[Tensor]:
    """Outputs and gradients of all tensors."""
    if case.orders is None:
        scan = functools.partial(selective_scan, backend=backend, return_last_state=True)
    else:
        scan = functools.partial(selective_scan_2d, backend=backend)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in case.tensors.items()}
    outputs = oracle.as_tuple(Case(leaves, case.options).by(scan))
    total = sum((y.float().square().sum() for y in outputs), torch.zeros(()))
    return [*(y.detach() for y in outputs), *torch.autograd.grad(total, list(leaves.values()))]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


CASES = {
    "image": lambda: make((2, 7, 9, 37), 3, orders=CROSS),
    "image of several slices": lambda: make((1, 6, 7, 120), 1, orders=CROSS),
    "sequence": lambda: make((3, 33, 70), 17).without("z"),
    "groups": lambda: make((1, 24, 40), 5, groups=3, constant="C").without("z"),
}


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Threads -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_on_any_number_of_threads(name: str) -> None:
    case = CASES[name]()
    with threads(1):
        expected = run(case)
    for number in (1, 2, 2, 3, 7):
        with threads(number):
            assert same(run(case), expected), number


def test_beside_operators_of_torch() -> None:
    case, matrix = CASES["image"](), torch.randn(256, 256)
    with threads(2):
        expected, product = run(case), matrix @ matrix
        for _ in range(5):
            assert torch.equal(matrix @ matrix, product)
            assert same(run(case), expected)
            assert torch.equal(matrix @ matrix, product)


@pytest.mark.parametrize("number", [1, 2])
def test_called_from_several_threads_at_once(number: int) -> None:
    cases = [make() for make in CASES.values()] * 2
    with threads(number):
        expected = [run(case) for case in cases]

        def one(case: Case) -> list[Tensor]:
            torch.set_num_threads(number)  # a thread begins with a number of its own
            return run(case)

        with ThreadPoolExecutor(4) as pool:
            for _ in range(3):
                assert all(same(a, b) for a, b in zip(pool.map(one, cases), expected, strict=True))


def test_threads_that_all_need_a_new_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = CASES["sequence"]()
    expected = run(case)
    monkeypatch.setenv("ANBAN_CACHE", str(tmp_path))
    cpu._kernel.cache_clear()
    gate = threading.Barrier(4)

    def one(_: int) -> list[Tensor]:
        gate.wait()
        return run(case)

    with ThreadPoolExecutor(4) as pool:
        assert all(same(found, expected) for found in pool.map(one, range(4)))


def test_threads_of_its_own_where_openmp_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    from anban.ssm.backends.cpu import launch

    case = CASES["image"]()
    expected = run(case)
    monkeypatch.setattr(launch, "_openmp", lambda: None)
    with threads(3):
        assert same(run(case), expected)


def test_backward_in_another_thread() -> None:
    case = CASES["image"]()
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in case.tensors.items()}
    with threads(2):
        expected = run(case)
        y = Case(leaves, case.options).by(selective_scan_2d)
        thread = threading.Thread(target=y.square().sum().backward)
        thread.start()
        thread.join()
    assert same([y.detach(), *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)], expected)


# Processes ---------------------------------------------------------------------------------------------------------------


class Scans(torch.utils.data.Dataset[Tensor]):
    """Every item is the flattened result of a scan on so many threads.

    Nothing else may use several threads in a process that was forked: `torch.exp` would wait for ever.
    """

    def __init__(self, case: Case, number: int):
        self.case, self.number = case, number

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        with threads(self.number):
            return torch.cat([part.flatten() for part in run(self.case)])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("number", [1, 2])
def test_in_the_workers_of_a_data_loader(number: int) -> None:
    case = CASES["image"]()
    with threads(2):
        before = run(case)
        loader = torch.utils.data.DataLoader(
            Scans(case, number), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=30
        )
        items = list(loader)
        assert same(run(case), before)  # the parent goes on
    assert len(items) == 4
    assert all(torch.equal(item, torch.cat([part.flatten() for part in before])) for item in items)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_after_a_fork() -> None:
    case, other = (
        CASES["image"](),
        make((1, 3, 4, 50), 6, orders=CROSS),
    )  # 6 states: a kernel that the parent has not
    true = other.true()[0]
    with threads(2):
        expected = run(case)
        child = os.fork()
        if child == 0:  # no assertion here: the exit status tells
            with contextlib.suppress(BaseException):
                good = same(run(case), expected) and oracle.error(run(other)[0], true) <= EPSILON
                os._exit(0 if good else 3)
            os._exit(4)
        end = threading.Timer(30, os.kill, (child, 9))
        end.start()
        _, status = os.waitpid(child, 0)
        end.cancel()
        assert os.waitstatus_to_exitcode(status) == 0
        assert same(run(case), expected)


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own that can import what stands beside this file."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_importing_it_imports_no_compiler() -> None:
    done = python(
        """
        import sys
        import anban.ssm
        import anban.ssm.scan
        from anban.ssm import backends
        for name in backends.BACKENDS:
            backends.module(name)
        print(*{"llvmlite", "numba"} & set(sys.modules))  # torch.utils.flop_counter imports Triton where it is installed
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_without_llvmlite_the_next_backend_runs_and_says_why() -> None:
    done = python(
        """
        import sys
        sys.modules["llvmlite"] = None  # importing it fails now
        import json, oracle, torch
        from anban.errors import InputError
        from anban.ssm import backends, selective_scan
        case = oracle.make((1, 3, 40)).without("z")
        y = case.by(selective_scan)
        name, why = backends.choose("auto", torch.device("cpu"), torch.float32)
        try:
            case.but(backend="cpu").by(selective_scan)
        except InputError as fault:
            print(json.dumps([name, why, str(fault), oracle.error(y, case.true()[0])]))
        """
    )
    assert done.returncode == 0, done.stderr
    name, why, fault, error = json.loads(done.stdout)
    assert name == "chunked"
    assert "llvmlite" in why
    assert "pip install llvmlite" in fault
    assert error <= EPSILON


# The cache of compiled kernels -------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], int]]:
    """An empty cache folder; the function forgets all kernels in memory, runs a scan and says how many were compiled."""
    monkeypatch.setenv("ANBAN_CACHE", str(tmp_path / "cache"))
    compiled: list[str] = []
    compile_ = build._compile

    def counting(text: str) -> bytes:
        compiled.append(text)
        return compile_(text)

    monkeypatch.setattr(build, "_compile", counting)
    case = make((1, 4, 20), 2)

    def scan() -> int:
        cpu._kernel.cache_clear()
        compiled.clear()
        found = run(case)[0]
        assert oracle.error(found, case.true()[0]) <= EPSILON
        return len(compiled)

    yield scan
    cpu._kernel.cache_clear()


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "kernels").iterdir())


def test_kernels_are_kept(fresh: Callable[[], int], tmp_path: Path) -> None:
    assert fresh() == 2  # forward and backward
    assert len(kept(tmp_path)) == 2
    assert fresh() == 0


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="truncated"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], id="altered"),
    ],
)
def test_a_spoilt_file_is_compiled_again(
    fresh: Callable[[], int], tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    fresh()
    good = [file.read_bytes() for file in kept(tmp_path)]
    for file in kept(tmp_path):
        file.write_bytes(spoil(file.read_bytes()))
    assert fresh() == 2
    assert [file.read_bytes() for file in kept(tmp_path)] == good
    assert fresh() == 0


def test_a_folder_that_others_can_write_to_is_not_trusted(fresh: Callable[[], int], tmp_path: Path) -> None:
    fresh()
    (tmp_path / "cache" / "kernels").chmod(0o777)
    assert fresh() == 2


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners on this system")
def test_a_folder_of_somebody_else_is_not_trusted(
    fresh: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh()
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    assert fresh() == 2


def test_a_folder_that_cannot_be_made_costs_a_compilation(
    fresh: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ANBAN_CACHE", str(tmp_path / "file"))
    assert fresh() == 2
    assert fresh() == 2


def test_a_user_without_a_home(
    fresh: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in a container that runs under a number which is nobody's."""

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("ANBAN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert fresh() == 2


def test_an_empty_variable_is_no_folder(
    fresh: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ANBAN_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)
    fresh()
    assert not (tmp_path / "kernels").exists()


def test_the_next_process_finds_them(
    fresh: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh()

    def files() -> list[tuple[str, int, int]]:
        return [(file.name, file.stat().st_ino, file.stat().st_mtime_ns) for file in kept(tmp_path)]

    before = files()
    case = make((1, 4, 20), 2)
    done = python(
        """
        import sys, torch
        import test_cpu
        torch.save(test_cpu.run(test_cpu.make((1, 4, 20), 2)), sys.argv[1])
        """,
        str(tmp_path / "results.pt"),
    )
    assert done.returncode == 0, done.stderr
    assert same(torch.load(tmp_path / "results.pt"), run(case))
    assert files() == before, "it compiled what was there"


# Other processors --------------------------------------------------------------------------------------------------------


def on(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANBAN_CPU", processor)
    build.target.cache_clear()
    cpu._kernel.cache_clear()


@pytest.fixture
def restored() -> Iterator[None]:
    yield
    build.target.cache_clear()
    cpu._kernel.cache_clear()


def can_run(processor: str) -> bool:
    import llvmlite.binding as llvm

    needs = {
        "x86-64": {"sse2"},
        "haswell": {"avx2", "fma", "bmi2"},
        "skylake-avx512": {"avx512f", "avx512vl"},
    }
    has = {name for name, there in llvm.get_host_cpu_features().items() if there}
    return platform.machine() in ("x86_64", "AMD64") and needs[processor] <= has


def rough() -> Case:
    """Rates from -0.001 to -1000, steps up to 25, some of them 0, one NaN."""
    case = make((1, 6, 9, 37), 4, orders=CROSS)
    exponents = torch.linspace(-3, 3, case.tensors["A"].numel()).view(4, 4, 37).transpose(1, 2)
    delta, x = case.tensors["delta"].clamp(-3, 3) * 5 + 10, case.tensors["x"].clone()
    delta[:, 2, 3], x[0, 4, 5, 6] = 0.0, float("nan")
    return case.without("delta_bias").but(A=-(10**exponents), delta=delta.relu(), x=x, delta_softplus=False)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("processor", ["x86-64", "haswell", "skylake-avx512"])
def test_the_same_results_on_another_processor(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_run(processor):
        pytest.skip(f"this processor cannot run code for {processor}")
    here = [run(make()) for make in CASES.values()]
    on(processor, monkeypatch)
    for name, expected in zip(CASES, here, strict=True):
        for number, (a, b) in enumerate(zip(run(CASES[name]()), expected, strict=True)):
            assert oracle.error(a, b.double()) <= EPSILON, (name, number)
    for case in (rough(), make((1, 5, 50)).but(delta=lambda delta: delta * 1e4)):
        found = case.but(backend="cpu").by(selective_scan if case.orders is None else selective_scan_2d)
        true = case.true()[0]
        assert torch.equal(found.isnan(), true.isnan())
        assert oracle.error(found.nan_to_num(), true.nan_to_num()) <= EPSILON


@pytest.mark.usefixtures("restored")
def test_an_unknown_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on("i386", monkeypatch)
    with pytest.raises(InputError, match="i386") as caught:
        run(CASES["image"]())
    assert "ANBAN_CPU" in str(caught.value)
    assert "haswell" in str(caught.value)


# PyTorch's transformations -----------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """A linear projection to steps, B and C of a scan of an image."""

    def __init__(self, channels: int = 6, states: int = 3, backend: str = "auto"):
        super().__init__()
        self.states, self.backend = states, backend
        self.project = nn.Linear(channels, len(CROSS) * (channels + 2 * states))
        self.rates = nn.Parameter(torch.zeros(len(CROSS), channels, states))

    def forward(self, x: Tensor) -> Tensor:
        N = self.states
        p = self.project(x).unflatten(-1, (len(CROSS), -1))
        y: Tensor = selective_scan_2d(
            x, p[..., : -2 * N], -self.rates.exp(), p[..., -2 * N : -N], p[..., -N:], backend=self.backend
        )
        return y


def layer(backend: str = "auto") -> tuple[Layer, Tensor]:
    torch.manual_seed(0)
    return Layer(backend=backend), torch.randn(2, 5, 4, 6)


def train(module: Callable[[Tensor], Tensor], x: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    y = module(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), parameters)]


@pytest.mark.parametrize("backend", ["cpu", "chunked", "reference"])
def test_compiled_in_one_graph(backend: str) -> None:
    module, x = layer(backend)
    parameters = list(module.parameters())
    expected = train(module, x, parameters)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for a, b in zip(train(compiled, x, parameters), expected, strict=True):
        assert oracle.error(a, b.double()) <= 1e-6


def arguments(kind: str) -> tuple[Any, ...]:
    case = make((2, 3, 4, 5), 2, orders=CROSS) if kind == "image" else make((2, 6, 7), 2, groups=2)
    t = case.without("z").tensors
    return *(tensor.requires_grad_() for tensor in t.values()), True, [0, 4, 1, 5] if kind == "image" else []


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # of the check itself
@pytest.mark.parametrize("backend", ["cpu", "chunked", "reference"])
@pytest.mark.parametrize("kind", ["image", "sequence"])
def test_the_operator_keeps_the_rules(kind: str, backend: str) -> None:
    """Schema, fake tensors, autograd registration, ahead-of-time dispatch."""
    torch.library.opcheck(torch.ops.anban.scan.default, (*arguments(kind), backend, True))


@pytest.mark.parametrize("backend", ["cpu", "chunked", "reference"])
@pytest.mark.parametrize("kind", ["image", "sequence"])
def test_fake_tensors_have_the_layout_of_real_ones(kind: str, backend: str) -> None:
    """Code that a compiler writes relies on the strides that it was promised."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    given = [a.detach() if isinstance(a, Tensor) else a for a in (*arguments(kind), backend)]
    y, last, saved = torch.ops.anban.scan(*given, True)
    found = (y, last, saved, *torch.ops.anban.scan_backward(*given, saved, y, last))
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in given]
        y, last, saved = torch.ops.anban.scan(*fake, True)
        promised = (y, last, saved, *torch.ops.anban.scan_backward(*fake, saved, y, last))
    for number, (real, promise) in enumerate(zip(found, promised, strict=True)):
        assert (real.shape, real.dtype) == (promise.shape, promise.dtype), number
        for size, stride, promised_stride in zip(real.shape, real.stride(), promise.stride(), strict=True):
            assert size == 1 or stride == promised_stride, number


def test_exported() -> None:
    module, x = layer()
    program = torch.export.export(module, (x,))
    assert torch.equal(program.module()(x), module(x))
    assert any(node.target is torch.ops.anban.scan.default for node in program.graph.nodes)


@pytest.mark.parametrize("backend", ["cpu", "chunked", "reference"])
def test_counted_by_the_published_formula(backend: str) -> None:
    image, sequence = make((2, 3, 4, 5), 6, orders=CROSS), make((2, 8, 7), 3, groups=2).without("D")
    for case, expected in (
        (image, flops(2, 12, 4 * 5, 6)),
        (sequence, flops(2, 7, 8, 3, skip=False)),
    ):
        counter = FlopCounterMode(display=False)
        with counter:
            case.but(backend=backend).by(selective_scan if case.orders is None else selective_scan_2d)
        assert counter.get_total_flops() == expected
    assert flops(1, 10, 3, 1) == 2 * 10 * 3 * (9 + 1)


def test_meta_tensors() -> None:
    image = make((2, 3, 4, 5), 6, orders=CROSS).to(torch.bfloat16)
    meta = image.but(**{name: tensor.to("meta") for name, tensor in image.tensors.items()})
    y = meta.by(selective_scan_2d)
    assert y.device.type == "meta"
    assert (y.shape, y.dtype) == ((2, 3, 4, 5), torch.float32)
    sequence = make((2, 8, 7), 3, groups=2).to(torch.bfloat16)
    meta = sequence.but(
        **{name: tensor.to("meta").requires_grad_() for name, tensor in sequence.tensors.items()}
    )
    y, last = meta.but(return_last_state=True).by(selective_scan)
    assert (y.shape, y.dtype) == ((2, 8, 7), torch.bfloat16)
    assert (last.shape, last.dtype) == ((2, 8, 3), torch.float32)
    found = torch.autograd.grad(y.sum() + last.sum(), list(meta.tensors.values()))
    assert [g.shape for g in found] == [t.shape for t in meta.tensors.values()]


@pytest.mark.parametrize("backend", ["cpu", "chunked"])
def test_autocast_leaves_the_scan_in_single_precision(backend: str) -> None:
    case = make((2, 5, 6, 18), 3, orders=CROSS)
    expected = run(case, backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(run(case, backend), expected)
    module, x = layer(backend)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    y.sum().backward()
    assert y.dtype == torch.float32
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name
    assert oracle.error(y, module(x).detach().double()) < 0.02


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("backend", ["cpu", "chunked", "reference"])
def test_without_gradients(mode: Callable[[], Any], backend: str) -> None:
    module, x = layer(backend)
    expected = module(x)
    with mode():
        y = module(x)
    assert not y.requires_grad
    assert torch.equal(y, expected)


@pytest.mark.parametrize("backend", ["cpu", "chunked", "reference"])
def test_what_torch_makes_by_default_does_not_matter(backend: str) -> None:
    case = make((2, 3, 4, 5), 3, orders=CROSS)

    def results() -> list[Tensor]:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in case.tensors.items()}
        y = Case(leaves, case.options).by(functools.partial(selective_scan_2d, backend=backend))
        return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), y.detach())]

    expected = results()
    torch.set_default_dtype(torch.float64)
    try:
        assert same(results(), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert same(results(), expected)


def test_states_are_saved_only_for_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    forward = cpu.forward

    def spy(problem: backends.Problem, save: bool) -> tuple[Tensor, Tensor, Tensor]:
        y, last, saved = forward(problem, save)
        asked.append(saved.numel() > 0)
        return y, last, saved

    monkeypatch.setattr(cpu, "forward", spy)
    module, x = layer("cpu")
    module(x)
    with torch.no_grad():
        module(x)
    with torch.inference_mode():
        module(x)
    module.requires_grad_(False)(x)
    assert asked == [True, False, False, False]


def test_chosen_for_float32_on_a_processor() -> None:
    name, why = backends.choose("auto", torch.device("cpu"), torch.float32)
    assert name == "cpu"
    assert "fastest" in why
    assert backends.choose("auto", torch.device("cpu"), torch.float64)[0] == "chunked"
