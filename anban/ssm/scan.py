"""The selective scan (S6) on sequences and on images: one operator, several backends.

    s_t = softplus(delta_t + delta_bias);  h_t = exp(s_t A) h_{t-1} + s_t B_t u_t;  y_t = <C_t, h_t> + D u_t

Source: Mamba, arXiv 2312.00752, algorithm 2; the image form is VMamba's cross-scan, scan and cross-merge (arXiv 2401.10166,
section 4.2) without the four copies of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

from anban.errors import InputError
from anban.ssm import backends
from anban.ssm.backends import Problem, accumulator
from anban.ssm.orders import CROSS, ORDERS, Walk, unknown, walks

FLOAT = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    delta_softplus: bool = ...,
    backend: str = ...,
    *,
    z: Tensor | None = ...,
    return_last_state: Literal[False] = ...,
) -> Tensor: ...
@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    delta_softplus: bool = ...,
    backend: str = ...,
    *,
    z: Tensor | None = ...,
    return_last_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    backend: str = "auto",
    *,
    z: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan of sequences; the meaning of every argument is that of mamba_ssm's `selective_scan_fn`.

    States, decays and sums are float32 whatever the inputs are (float64 for float64 inputs).

    Args:
        u: (batch, dim, L), L >= 1.
        delta: (batch, dim, L), the raw step.
        A: (dim, N), real; negative for a decaying state.
        B, C: (batch, G, N, L), channel c belongs to group c // (dim // G); (batch, N, L): one group; (dim, N): constant.
        D: (dim,), the skip; optional.
        delta_bias: (dim,), added to delta before the softplus; optional.
        delta_softplus: whether the step is softplus(delta + delta_bias).
        backend: "auto", or one of `anban.ssm.backends.BACKENDS`.
        z: (batch, dim, L), a gate: y * silu(z); optional.
        return_last_state: also return the state after the last step, (batch, dim, N) in float32.

    Returns:
        y (batch, dim, L) in the dtype of u; with `return_last_state`, y and that state.

    Raises:
        InputError: a tensor of another shape, dtype or device than the rest asks for, or a backend that cannot run.
    """
    if u.dim() != 3 or 0 in u.shape:
        raise _refuse("u", u, "(batch, dim, L), none of them 0")
    batch, dim, length = u.shape
    if A.dim() != 2 or A.shape[0] != dim or A.shape[1] < 1:
        raise _refuse("A", A, f"(dim, N) = ({dim}, N)")
    states = A.shape[1]
    B, C = (m.unsqueeze(1) if m.dim() == 3 else m for m in (B, C))
    groups = max([1, *(m.shape[1] for m in (B, C) if m.dim() == 4)])
    for name, m in (("B", B), ("C", C)):
        own = m.shape[1] if m.dim() == 4 else 1
        if own < 1 or groups % own or dim % groups:
            raise _refuse(name, m, f"(batch, G, N, L) with a number of groups G that divides dim = {dim}")
        expected = (dim, states) if m.dim() == 2 else (batch, own, states, length)
        _shape(name, m, expected, "(batch, G, N, L), (batch, N, L) or constant (dim, N)")
    B, C = (m.repeat_interleave(groups // m.shape[1], 1) if m.dim() == 4 else m for m in (B, C))
    _shape("delta", delta, (batch, dim, length))
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        _shape(name, vector, (dim,))
    _shape("z", z, (batch, dim, length))
    _alike(u=u, delta=delta, A=A, B=B, C=C, D=D, delta_bias=delta_bias, z=z)
    y, last = _scan(u, delta, A, B, C, D, delta_bias, delta_softplus, [], backend)
    if z is not None:
        y = y * F.silu(z.to(y.dtype))
    y = y.to(u.dtype)
    return (y, last) if return_last_state else y


def selective_scan_2d(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    backend: str = "auto",
    *,
    orders: Sequence[str] = CROSS,
) -> Tensor:
    """Scan an image along K orders and add the results up on its pixels: cross-scan, selective scan and cross-merge in one.

    Everything is indexed by pixel, not by the place in a sequence; the K sequences are never written to memory. Tensors whose
    last dimension is contiguous are read where they are; B and C may be slices of a wider projection.

    Args:
        x: (batch, H, W, d).
        delta: (batch, H, W, K, d), the raw step.
        A: (K, d, N).
        B, C: (batch, H, W, K, N).
        D, delta_bias: (K, d), optional.
        delta_softplus: whether the step is softplus(delta + delta_bias).
        backend: "auto", or one of `anban.ssm.backends.BACKENDS`.
        orders: K names of `anban.ssm.orders.ORDERS`.

    Returns:
        (batch, H, W, d) in float32 (float64 for float64 inputs), the sum over the K directions.

    Raises:
        InputError: a tensor of another shape, dtype or device than the rest asks for, an unknown order, or a backend that cannot
            run.
    """
    if x.dim() != 4 or 0 in x.shape:
        raise _refuse("x", x, "(batch, H, W, d), none of them 0")
    batch, height, width, channels = x.shape
    directions = len(orders)
    if not orders:
        raise InputError(
            "no scan order is given", where="selective scan, orders", expected=f"some of {', '.join(ORDERS)}"
        )
    if A.dim() != 3 or A.shape[:2] != (directions, channels) or A.shape[2] < 1:
        raise _refuse("A", A, f"(K, d, N) = ({directions}, {channels}, N) for {directions} orders")
    _shape("delta", delta, (batch, height, width, directions, channels))
    for name, m in (("B", B), ("C", C)):
        _shape(name, m, (batch, height, width, directions, A.shape[2]))
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        _shape(name, vector, (directions, channels))
    _alike(x=x, delta=delta, A=A, B=B, C=C, D=D, delta_bias=delta_bias)
    places = [ORDERS.index(order) if order in ORDERS else -1 for order in orders]
    if -1 in places:
        raise unknown(orders[places.index(-1)])
    return _scan(x, delta, A, B, C, D, delta_bias, delta_softplus, places, backend)[0]


def flops(batch: int, length: int, channels: int, states: int, skip: bool = True) -> int:
    """Floating point operations of one scan over `channels` channels (all directions counted), by VMamba's formula.

    9 multiply-adds per state and element (discretisation, recurrence, output), one per element for the skip D; two operations
    each. It is the formula behind the published figures, and it is the same for every backend whatever that really executes.
    """
    return 2 * batch * length * channels * (9 * states + skip)


# One operator, so that autocast, torch.compile, export and FLOP counters see one node ------------------------------------


_ARGUMENTS = "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? bias, bool softplus, int[] orders, str backend"
_LIBRARY: Any = torch.library.Library("anban", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(f"scan({_ARGUMENTS}, bool save) -> (Tensor y, Tensor last, Tensor saved)")
_LIBRARY.define(
    f"scan_backward({_ARGUMENTS}, Tensor saved, Tensor dy, Tensor dlast)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    orders: list[int],
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The operator. It takes tensors as users have them, sequences (no orders) or images (places in `ORDERS`), so that the views
    which make a `Problem` of them are not nodes of the autograd graph: for a small image these cost as much as the scan."""
    tensors = x, delta, A, B, C, D, bias
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    call = _Direct.apply if _unobserved(x) else torch.ops.anban.scan
    y, last, _ = call(*tensors, softplus, orders, backend, save)
    return y, last


def _unobserved(x: Tensor) -> bool:
    """Whether nobody looks at operators: no compiler, counter, tracer or transformation, and real tensors."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, torch.nn.Parameter)
        and _get_current_dispatch_mode() is None
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and x.device.type in ("cpu", "cuda")
    )


def _module(backend: str, x: Tensor) -> ModuleType:
    """Chosen inside the operator, where torch.compile does not look."""
    return backends.module(backends.choose(backend, x.device, x.dtype)[0])


def _problem(tensors: Sequence[Any], softplus: bool, orders: Sequence[int]) -> Problem:
    x, delta, A, B, C, D, bias = tensors
    if orders:
        _, height, width, _ = x.shape
        rows = (m.flatten(1, 2) for m in (delta, B, C))
        steps = walks(tuple([ORDERS[order] for order in orders]), height, width)
        delta, B, C = rows
        return Problem(x.flatten(1, 2).unsqueeze(2), delta, A, B, C, D, bias, softplus, steps)
    length = x.shape[2]
    groups = next((m.shape[1] for m in (B, C) if m.dim() == 4), 1)

    def channels(m: Any, dim: int) -> Any:
        return None if m is None else m.unflatten(dim, (groups, -1))

    x, delta = (channels(m, 1).permute(0, 3, 1, 2) for m in (x, delta))
    B, C = (channels(m, 0) if m.dim() == 2 else m.permute(0, 3, 1, 2) for m in (B, C))
    steps = (Walk(0, 1, length, length),) * groups
    return Problem(x, delta, channels(A, 0), B, C, channels(D, 0), channels(bias, 0), softplus, steps)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, softplus, orders, backend, save = arguments
    y, last, saved = _module(backend, tensors[0]).forward(_problem(tensors, softplus, orders), save)
    if orders:
        return y.reshape(tensors[0].shape).contiguous(), last.contiguous(), saved
    return y.permute(0, 2, 3, 1).flatten(1, 2).contiguous(), last.flatten(1, 2).contiguous(), saved


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, softplus, orders, backend, saved, dy, dlast = arguments
    problem = _problem(tensors, softplus, orders)
    if orders:
        dy = dy.reshape(problem.x.shape)
    else:
        dy = dy.unflatten(1, problem.x.shape[2:]).permute(0, 3, 1, 2)
        dlast = dlast.unflatten(1, problem.x.shape[2:])
    found = _module(backend, tensors[0]).backward(problem, saved, dy, dlast)
    # an operator's schema cannot say "as many as there were": what is absent is empty
    return tuple(
        dy.new_empty(0) if g is None else _as_given(g, t, bool(orders))
        for g, t in zip(found, tensors, strict=True)
    )


def _as_given(gradient: Tensor, tensor: Tensor, image: bool) -> Tensor:
    """The gradient of a problem's tensor in the shape of the user's, the way back from `_problem`, and in the layout that
    `torch.empty_like` would give it, which is what compiled code counts on."""
    if not image and gradient.dim() == 4:
        gradient = gradient.permute(0, 2, 3, 1)
    gradient = gradient.reshape(tensor.shape)
    if gradient.is_contiguous() and tensor.is_contiguous():
        return gradient
    dense = gradient.untyped_storage().nbytes() == gradient.numel() * gradient.element_size()
    if dense and _strides(gradient) == _strides(tensor):
        return gradient
    return torch.empty_like(tensor).copy_(gradient)


def _strides(tensor: Tensor) -> list[int]:
    """Those that matter: a dimension of one entry may have any."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("scan", _forward, _device)
    _LIBRARY.impl("scan_backward", _backward, _device)


@torch.library.register_fake("anban::scan")  # type: ignore[untyped-decorator]
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, delta, A, B, C, *_, orders, backend, save = arguments
    if orders:
        batch, height, width, directions, channels = delta.shape
        pixels = height * width
    else:
        batch, channels, pixels = delta.shape
        directions = next((m.shape[1] for m in (B, C) if m.dim() == 4), 1)
        channels = channels // directions
    module = _module(backend, x)
    filled = getattr(module, "padded", int)(channels)  # channels with those that only fill vectors
    steps = module.STEPS
    saved = (
        (batch, directions, (pixels + steps - 1) // steps, A.shape[-1], filled) if save and steps else (0,)
    )
    y, end, kept = (
        x.new_empty(shape, dtype=accumulator(x.dtype)) for shape in (x.shape, (batch, *A.shape), saved)
    )
    return y, end, kept


@torch.library.register_fake("anban::scan_backward")  # type: ignore[untyped-decorator]
def _(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) if t is not None else arguments[0].new_empty(0) for t in arguments[:7])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, softplus, orders, backend, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.options = softplus, orders, backend


def _gradients(run: Callable[..., Any], ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # create_graph=True
        raise NotImplementedError(
            "the selective scan has no second derivatives; anban.ssm.backends.reference.recurrence is plain torch and has them"
        )
    *tensors, saved = ctx.saved_tensors
    found = run(*tensors, *ctx.options, saved, dy, dlast)
    gradients = (None if t is None else gradient for t, gradient in zip(tensors, found, strict=True))
    return *gradients, None, None, None, None


def _differentiate(ctx: Any, dy: Tensor, dlast: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(torch.ops.anban.scan_backward, ctx, dy, dlast)


class _Direct(torch.autograd.Function):
    """The operator without the dispatcher, whose ways through Python cost as much as the scan of a small image."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        result = _forward(*arguments)
        _keep(ctx, arguments, result)
        ctx.mark_non_differentiable(result[2])
        return result

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dlast: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return _gradients(_backward, ctx, dy, dlast)


torch.library.register_autograd("anban::scan", _differentiate, setup_context=_keep, lib=_LIBRARY)


@register_flop_formula(torch.ops.anban.scan)  # type: ignore[untyped-decorator]
def _(x: Any, delta: Any, A: Any, B: Any, C: Any, D: Any = None, *_: Any, **__: Any) -> int:
    if len(delta) == 5:
        batch, height, width, directions, channels = delta
        return flops(batch, height * width, directions * channels, A[-1], skip=D is not None)
    batch, channels, length = delta
    return flops(batch, length, channels, A[-1], skip=D is not None)


# Checks ------------------------------------------------------------------------------------------------------------------


def _refuse(name: str, tensor: Tensor, expected: str) -> InputError:
    return InputError(
        f"{name} has the shape {tuple(tensor.shape)}", where=f"selective scan, {name}", expected=expected
    )


def _shape(name: str, tensor: Tensor | None, shape: tuple[int, ...], meaning: str = "") -> None:
    if tensor is not None and tensor.shape != shape:
        raise _refuse(name, tensor, f"{shape}{f', that is {meaning}' if meaning else ''}")


def _alike(**tensors: Tensor | None) -> None:
    first = next(iter(tensors.values()))
    assert first is not None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype not in FLOAT:
            expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT)
            raise InputError(
                f"{name} is of {str(tensor.dtype).removeprefix('torch.')}",
                where=f"selective scan, {name}",
                expected=f"real numbers: {expected}",
                do="a complex A belongs to S4 and S4D (anban.ssm.s4)"
                if tensor.is_complex()
                else f"pass {name}.float()",
            )
        if tensor.device != first.device:
            raise InputError(
                f"{name} is on {tensor.device}",
                where=f"selective scan, {name}",
                expected=f"the device of the first argument, {first.device}",
                do=f"pass {name}.to({str(first.device)!r})",
            )
