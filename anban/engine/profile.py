"""What a network costs: parameters, multiply-adds, speed, memory.

Multiply-adds come from the formulas of `torch.utils.flop_counter`. An operator of one's own is counted by registering a
formula there, once, next to its definition:

    @torch.utils.flop_counter.register_flop_formula(torch.ops.mine.scan)
    def _(u_shape, *other_shapes, out_shape=None, **options) -> int: ...   # 2 per multiply-add
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula, sdpa_flop_count

Precision = Literal["fp32", "bf16", "fp16"]
MIB = 2**20

_MOVES = frozenset(
    re.findall(
        r"\w+",
        """
        _local_scalar_dense _reshape_copy _to_copy _unsafe_view alias arange as_strided_copy cat
        channel_shuffle clone constant_pad_nd copy detach empty empty_like empty_permuted empty_strided
        expand_copy eye fill flip full full_like gather im2col index index_copy index_put index_select lift
        lift_fresh linspace masked_fill masked_scatter new_empty new_empty_strided new_full new_ones new_zeros
        ones ones_like pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d reflection_pad3d repeat
        repeat_interleave replication_pad1d replication_pad2d replication_pad3d resize roll rot90
        scalar_tensor scatter select_scatter slice_scatter stack take tril triu upsample_nearest1d
        upsample_nearest2d upsample_nearest3d view_copy where zero zeros zeros_like
        """,
    )
)
"""Operators that make, copy or rearrange values and compute none: having no formula is right for them."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """One forward pass, counted.

    `flops` maps operator names ("aten::convolution") to floating point operations, 2 per multiply-add; `uncounted` names,
    sorted, the operators that did arithmetic and have no formula (normalisation, activations, pooling, ...);
    `peak_bytes` is the most that the weights, inputs and intermediate tensors took together at any time, without what
    kernels take inside: a lower bound.
    """

    flops: dict[str, int]
    uncounted: list[str]
    peak_bytes: int

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return sum(self.flops.values()) // 2


def count(model: nn.Module, inputs: tuple[Tensor, ...]) -> Counts:
    """Run `model(*inputs)` once, in evaluation mode and without gradients, and count.

    Counting needs shapes alone: a model and inputs on the "meta" device are counted without computing anything.
    """
    was_training = model.training
    model.eval()
    counter = FlopCounterMode(display=False)
    watch = _Watch([*model.parameters(), *model.buffers(), *inputs])
    try:
        with torch.no_grad(), counter, watch:
            model(*inputs)
    finally:
        model.train(was_training)
    total = counter.get_flop_counts().get("Global", {})
    return Counts(
        {str(packet).replace(".", "::"): flops for packet, flops in total.items()},
        sorted(watch.uncounted),
        watch.peak,
    )


def profile(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    runs: int = 20,
    warmup: int = 5,
) -> dict[str, Any]:
    """Measure what `model(*inputs)` costs; the "efficiency" of a run's record.

    The model is run in evaluation mode, so heads that only training uses cost nothing, and without gradients; it is left
    on the device and in the mode it came in.

    Args:
        inputs: what the network takes, batch first; their first dimension is the batch.
        device: where to run.
        precision: "fp32", or the type of `torch.autocast`.
        runs: timed runs, each waited for to its end.
        warmup: runs before them that are not timed.

    Returns:
        `input` ("2 x 1x3x256x256": two inputs of that shape), `parameters`, `macs` and `flops` of one call (1 multiply-add
        = 2 FLOPs; convolutions, matrix products, attention and what has a formula), `uncounted` (names of operators with
        arithmetic but no formula), `fps` (items of the batch per second), `latency_ms` (p50 and p95 of one call),
        `peak_memory_mb` (MiB: weights, inputs and what the call allocates; on CUDA by the allocator's own peak, elsewhere by
        the sizes of all living tensors, which leaves out what kernels take inside), `device`, `precision`, `batch`.
    """
    if runs < 1 or warmup < 0:
        raise ValueError(f"runs must be at least 1 and warmup at least 0, not {runs} and {warmup}")
    device = torch.device(device)
    home = next(iter([*model.parameters(), *model.buffers()]), torch.empty(0)).device
    was_training = model.training
    inputs = tuple(tensor.to(device) for tensor in inputs)
    model.to(device).eval()
    autocast = torch.autocast(
        device.type,
        dtype=torch.float16 if precision == "fp16" else torch.bfloat16,
        enabled=precision != "fp32",
    )
    try:
        with torch.no_grad(), autocast:
            counts = count(model, inputs)
            for _ in range(warmup):
                model(*inputs)
            seconds = [_timed(model, inputs, device) for _ in range(runs)]
            peak = _cuda_peak(model, inputs, device) if device.type == "cuda" else counts.peak_bytes
    finally:
        model.to(home).train(was_training)
    p50, p95 = (1000 * float(value) for value in np.percentile(seconds, (50, 95)))
    batch = inputs[0].shape[0]
    return {
        "input": _describe(inputs),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": counts.macs,
        "flops": sum(counts.flops.values()),
        "uncounted": counts.uncounted,
        "fps": batch * runs / math.fsum(seconds),
        "latency_ms": {"p50": p50, "p95": p95},
        "peak_memory_mb": peak / MIB,
        "device": _name(device),
        "precision": precision,
        "batch": batch,
    }


def levels(
    model: nn.Module, inputs: tuple[Tensor, ...], parts: Mapping[str, nn.Module] | None = None
) -> list[dict[str, Any]]:
    """What each part of the network puts out: `part` (its name) and `shapes`, in the order of the calls.

    Args:
        parts: by their names; by default the network's `children`.
    """
    seen: list[dict[str, Any]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            shapes = [list(leaf.shape) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            seen.append({"part": name, "shapes": shapes})

        return hook

    was_training = model.training
    hooks = [
        part.register_forward_hook(note(name)) for name, part in (parts or dict(children(model))).items()
    ]
    try:
        with torch.no_grad():
            model.eval()(*inputs)
    finally:
        model.train(was_training)
        for handle in hooks:
            handle.remove()
    return seen


def children(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The direct children of a module with their names; of a list or dict of modules, its members."""
    for name, part in module.named_children():
        if isinstance(part, nn.ModuleList | nn.ModuleDict):  # never called themselves
            yield from children(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", part


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator: notes those without a formula, and the bytes of all tensors alive."""

    def __init__(self, resident: Iterable[Tensor]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.uncounted: set[str] = set()
        self.peak = self._bytes = 0
        self._alive: set[int] = set()
        self._add(resident)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        counted = getattr(func, "_overloadpacket", func) in flop_registry
        if not counted and _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not counted and made and not getattr(func, "is_view", False):
            name = str(getattr(func, "_overloadpacket", func)).replace(".", "::")
            if name.partition("::")[2].rstrip("_") not in _MOVES:
                self.uncounted.add(name.rstrip("_"))
        self._add(made)
        return result

    def _add(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._alive:
                self._alive.add(key)
                self._bytes += size
                weakref.finalize(storage, self._release, key, size).atexit = False
        self.peak = max(self.peak, self._bytes)

    def _release(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._bytes -= size


def _is_composite(func: Any) -> bool:
    """Whether an operator is defined by others; only where gradients are off altogether does one arrive here whole."""
    return isinstance(func, torch._ops.OpOverload) and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(),  # type: ignore[no-untyped-call]
        "CompositeImplicitAutograd",
    )


def _timed(model: nn.Module, inputs: tuple[Tensor, ...], device: torch.device) -> float:
    """Seconds of one call, from an idle device to its end."""
    _wait(device)
    start = time.perf_counter()
    model(*inputs)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cuda_peak(model: nn.Module, inputs: tuple[Tensor, ...], device: torch.device) -> int:
    """Bytes of the weights and inputs plus the most the call allocated: what else lies on the device is not counted."""
    own = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers(), *inputs)
    }
    _wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    model(*inputs)
    _wait(device)
    return sum(own.values()) + torch.cuda.max_memory_allocated(device) - before


def _describe(inputs: tuple[Tensor, ...]) -> str:
    shapes = ["x".join(map(str, tensor.shape)) for tensor in inputs]
    return f"{len(shapes)} x {shapes[0]}" if len(set(shapes)) == 1 else " + ".join(shapes)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({torch.get_num_threads()} threads)"


def _register_missing() -> None:
    """Formulas that torch lacks for operators which our networks meet on a CPU."""

    def attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    def matrix_vector(matrix: Any, vector: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return int(2 * math.prod(matrix))

    def added_matrix_vector(bias: Any, matrix: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return int(2 * math.prod(matrix))

    aten = torch.ops.aten
    for target, formula in (
        (aten._scaled_dot_product_flash_attention_for_cpu, attention),
        (aten.mv, matrix_vector),
        (aten.dot, matrix_vector),
        (aten.addmv, added_matrix_vector),
    ):
        if target not in flop_registry:
            register_flop_formula(target)(formula)


_register_missing()
