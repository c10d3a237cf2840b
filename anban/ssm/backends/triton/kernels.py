"""The kernels. Imported at first use: `TRITON_INTERPRET` is read, and Triton is loaded, only then.

One program owns a block of channels of one segment of the sequence and walks it step by step; a lane holds one or a few
channels with all their states, so that nothing but the gradients of B and C is ever summed across lanes. Rows are read T steps
at a time, the next T while the current ones are worked on.

A tensor with a pixel axis is passed as (pointer, batch stride, pixel stride, direction stride); its channels, or states, are
contiguous. A direction is passed as six integers: its number k, the four of its walk, and whether it is mirrored; each of them as
4 v + 2, which is neither 1 nor a multiple of 16: for these Triton would compile further variants, since it heeds
`do_not_specialize` for plain arguments only, not for tuples.

Positions are counted in u = t + lead. The lead is 0 but for mirrored directions, where it fills up the first segment instead of
the last one: then the segments of a walk and of its reverse hold the same pixels, and one program can own these for both.
"""
# Triton knows no starred members, and an `if` is either decided when it compiles or when it runs:
# ruff: noqa: RUF005, SIM102
# mypy: disable-error-code="import-not-found,no-untyped-def,no-untyped-call,untyped-decorator,index,arg-type,assignment,operator"

import numpy as np
import triton
import triton.language as tl
from numpy.polynomial import Chebyshev, Polynomial

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
WALK = tl.constexpr(6)  # integers per direction
LOG1P = tl.constexpr(
    tuple(
        float(c)  # of log1p(t) / t for 0 <= t <= 1; the error is 2e-8
        for c in Chebyshev.interpolate(lambda t: np.log1p(t) / t, 9, domain=[0, 1])
        .convert(kind=Polynomial)
        .coef
    )
)


# Where things are -------------------------------------------------------------------------------------------------------


@triton.jit
def _direction(walks, i, DIRECTIONS: tl.constexpr):
    """The six integers of the i-th direction."""
    found = ()
    for number in tl.static_range(WALK):
        value = walks[number]
        for j in tl.static_range(1, DIRECTIONS):
            value = tl.where(i == j, walks[WALK * j + number], value)
        found = found + ((value - 2) // 4,)
    return found


@triton.jit
def _segment(mirrored, segment, segments, size, L):
    """Number, lead, first and last + 1 position of the segment of a direction that holds the pixels of the plain one."""
    number = tl.where(mirrored != 0, segments - 1 - segment, segment)
    lead = tl.where(mirrored != 0, segments * size - L, 0)
    return number, lead, tl.maximum(number * size, lead), tl.minimum((number + 1) * size, L + lead)


@triton.jit
def _tile(walk, lead, u, begin, end, STRAIGHT: tl.constexpr, WIDE: tl.constexpr, T: tl.constexpr):
    """The pixels of T positions from u on, and whether these are in begin <= u < end; for others it is the pixel of step 0.

    STRAIGHT: tiles neither turn into the next line nor reach beyond begin or end.
    """
    start, step, count, jump = walk[1], walk[2], walk[3], walk[4]
    t = u - lead
    line = tl.maximum(t, 0) // count
    place = t - line * count
    pixel = start + line * jump + place * step
    pixels, inside = (), ()
    for i in tl.static_range(T):
        if STRAIGHT:
            at, own = pixel + i * step, True
        else:
            own = (u + i >= begin) & (u + i < end)
            at = tl.where(own, pixel, start)
            turn = place == count - 1
            pixel += tl.where(turn, jump - (count - 1) * step, step)
            place = tl.where(turn, 0, place + 1)
        pixels, inside = pixels + (tl.cast(at, tl.int64) if WIDE else at,), inside + (own,)
    return pixels, inside


@triton.jit
def _base(field, b, k):
    """The pointer of a field for batch entry b and direction k."""
    return field[0] + tl.cast(b, tl.int64) * field[1] + tl.cast(k, tl.int64) * field[3]


@triton.jit
def _rows(at, pixels, stride, here, T: tl.constexpr):
    """T rows of channels."""
    rows = ()
    for i in tl.static_range(T):
        rows = rows + (tl.load(at + pixels[i] * stride, mask=here, other=0.0),)
    return rows


@triton.jit
def _states(at, pixel, stride, n, N: tl.constexpr):
    """The row of B or C at a pixel as a column of states."""
    if n.shape[0] == N:
        row = tl.load(at + pixel * stride + n)
    else:
        row = tl.load(at + pixel * stride + n, mask=n < N, other=0.0)
    return row.to(tl.float32)[:, None]


# The step ---------------------------------------------------------------------------------------------------------------


@triton.jit
def _softplus(v):
    """max(v, 0) + log1p(t) with t = exp(-|v|), log1p as t times a polynomial.

    The logarithm of the hardware is no substitute: near 1 it is precise in absolute terms only.
    """
    t = tl.exp2(-tl.abs(v) * LOG2E)
    p = t * LOG1P[9] + LOG1P[8]
    for i in tl.static_range(7, -1, -1):
        p = t * p + LOG1P[i]
    return tl.maximum(v, 0.0) + t * p


@triton.jit
def _logistic(v):
    """The derivative of the softplus, without cancellation on either side."""
    t = tl.exp2(-tl.abs(v) * LOG2E)
    return tl.where(v >= 0, 1.0, t) / (1.0 + t)


@triton.jit
def _steps(rows, bias, inside, SOFTPLUS: tl.constexpr, T: tl.constexpr):
    """The steps s of T rows of delta; 0, which leaves a state as it is, where not inside."""
    steps = ()
    for i in tl.static_range(T):
        v = rows[i].to(tl.float32) + bias
        s = _softplus(v) if SOFTPLUS else v
        steps = steps + (tl.where(inside[i], s, 0.0),)
    return steps


# Kernels ----------------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["L", "slots", "segments", "size", "walks", "add"])
def forward(
    x,
    delta,
    A,
    B,
    C,
    D,
    bias,
    y,
    carries,
    saved,
    last,
    d,
    K,
    L,
    slots,
    segments,
    size,
    walks,
    add,
    N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CARRIED: tl.constexpr,
    SAVE: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    MEMBERS: tl.constexpr,
    STEPS: tl.constexpr,
    STRAIGHT: tl.constexpr,
    WIDE: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    """y of the directions of one launch, MEMBERS of them in a program, and the states that the backward pass asks for.

    The first member writes y (or adds to it, with `add`), the others add to what the program itself has written.
    A, and constant B and C, are (K, N, d); A is multiplied by log2(e). `carries` (batch, K, segments, N, d) are the states before
    the segments; `saved` (batch, K, slots, N, d); `last` (batch, K, N, d).
    """
    cell = tl.program_id(0)
    blocks = tl.cdiv(d, BLOCK)
    lane = cell % blocks * BLOCK + tl.arange(0, BLOCK)
    here = lane < d
    segment = cell // blocks % segments
    cell = cell // blocks // segments
    group, b = cell % (DIRECTIONS // MEMBERS), cell // (DIRECTIONS // MEMBERS)
    n = tl.arange(0, STATES)
    cells = tl.max_contiguous(n[:, None] * d + lane[None, :], [1, BLOCK // 32])
    real = (n[:, None] < N) & here[None, :]
    for member in range(MEMBERS):
        walk = _direction(walks, group * MEMBERS + member, DIRECTIONS)
        k = walk[0]
        number, lead, begin, end = _segment(walk[5], segment, segments, size, L)
        own = tl.cast(b, tl.int64) * K + k
        decay = tl.load(A + k * N * d + cells, mask=real, other=0.0)
        x_at, delta_at, y_at = _base(x, b, k) + lane, _base(delta, b, k) + lane, _base(y, b, k) + lane
        B_at, C_at = _base(B, b, k), _base(C, b, k)
        shift = tl.load(bias + k * d + lane, mask=here, other=0.0) if bias is not None else 0.0
        if D is not None:
            skip = tl.load(D + k * d + lane, mask=here, other=0.0)
        if B[2] is None:
            b_row = tl.load(B_at + cells, mask=real, other=0.0).to(tl.float32)
        if C[2] is None:
            c_row = tl.load(C_at + cells, mask=real, other=0.0).to(tl.float32)
        if CARRIED:
            h = tl.load(carries + (own * segments + number) * N * d + cells, mask=real, other=0.0)
        else:
            h = tl.zeros([STATES, BLOCK], tl.float32)
        adds = here & ((member > 0) | (add != 0))
        first = begin // T * T
        pixels, inside = _tile(walk, lead, first, begin, end, STRAIGHT, WIDE, T)
        xs, deltas = _rows(x_at, pixels, x[2], here, T), _rows(delta_at, pixels, delta[2], here, T)
        for u in range(first, end, T):
            if SAVE:
                if (u == first) | (u % STEPS == 0):
                    slot = own * slots + (u // STEPS - lead // STEPS)
                    tl.store(saved + slot * N * d + cells, h, mask=real)
            ahead = tl.minimum(u + T, end - T) if STRAIGHT else u + T  # nothing lies beyond the end
            next_pixels, next_inside = _tile(walk, lead, ahead, begin, end, STRAIGHT, WIDE, T)
            next_xs = _rows(x_at, next_pixels, x[2], here, T)
            next_deltas = _rows(delta_at, next_pixels, delta[2], here, T)
            ys = _rows(y_at, pixels, y[2], adds, T)
            steps = _steps(deltas, shift, inside, SOFTPLUS, T)
            totals = ()
            for i in tl.static_range(T):
                if B[2] is not None:
                    b_row = _states(B_at, pixels[i], B[2], n, N)
                if C[2] is not None:
                    c_row = _states(C_at, pixels[i], C[2], n, N)
                value = xs[i].to(tl.float32)
                h = tl.exp2(decay * steps[i][None, :]) * h + b_row * (steps[i] * value)[None, :]
                total = tl.sum(h * c_row, 0) + ys[i]
                totals = totals + (total + skip * value if D is not None else total,)
            for i in tl.static_range(T):
                tl.store(y_at + pixels[i] * y[2], totals[i], mask=here & inside[i])
            pixels, inside, xs, deltas = next_pixels, next_inside, next_xs, next_deltas
        if number == segments - 1:
            tl.store(last + own * N * d + cells, h, mask=real)
        tl.debug_barrier()  # the next member reads the y of this one


@triton.jit(do_not_specialize=["L", "segments", "size", "walks"])
def summarise(
    drive,
    delta,
    A,
    weight,
    bias,
    ends,
    sums,
    d,
    K,
    L,
    segments,
    size,
    walks,
    N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    STRAIGHT: tl.constexpr,
    WIDE: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    """What a segment makes of a zero state, `ends` (batch, K, segments, N, d), and the sum of its steps, `sums` (.., segments, d).

    Forward, with drive = x and weight = B:           h = exp(s A) h + s B x.
    REVERSE, with drive = dy and weight = C:          q = exp(s A) (q + C dy), from the last step to the first.
    """
    cell = tl.program_id(0)
    blocks = tl.cdiv(d, BLOCK)
    lane = cell % blocks * BLOCK + tl.arange(0, BLOCK)
    here = lane < d
    segment = cell // blocks % segments
    cell = cell // blocks // segments
    direction, b = cell % DIRECTIONS, cell // DIRECTIONS
    n = tl.arange(0, STATES)
    cells = tl.max_contiguous(n[:, None] * d + lane[None, :], [1, BLOCK // 32])
    real = (n[:, None] < N) & here[None, :]
    walk = _direction(walks, direction, DIRECTIONS)
    k = walk[0]
    number, lead, begin, end = _segment(walk[5], segment, segments, size, L)
    decay = tl.load(A + k * N * d + cells, mask=real, other=0.0)
    drive_at, delta_at = _base(drive, b, k) + lane, _base(delta, b, k) + lane
    weight_at = _base(weight, b, k)
    shift = tl.load(bias + k * d + lane, mask=here, other=0.0) if bias is not None else 0.0
    if weight[2] is None:
        row = tl.load(weight_at + cells, mask=real, other=0.0).to(tl.float32)
    h = tl.zeros([STATES, BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    first = begin // T * T
    tiles = tl.cdiv(end - first, T)
    for tile in range(tiles):
        u = first + (tiles - 1 - tile if REVERSE else tile) * T
        pixels, inside = _tile(walk, lead, u, begin, end, STRAIGHT, WIDE, T)
        drives = _rows(drive_at, pixels, drive[2], here, T)
        steps = _steps(_rows(delta_at, pixels, delta[2], here, T), shift, inside, SOFTPLUS, T)
        for i in tl.static_range(T - 1 if REVERSE else 0, -1 if REVERSE else T, -1 if REVERSE else 1):
            if weight[2] is not None:
                row = _states(weight_at, pixels[i], weight[2], n, N)
            a = tl.exp2(decay * steps[i][None, :])
            if REVERSE:
                value = tl.where(inside[i], drives[i].to(tl.float32), 0.0)
                h = a * (h + row * value[None, :])
            else:
                h = a * h + row * (steps[i] * drives[i].to(tl.float32))[None, :]
            total += steps[i]
    own = (tl.cast(b, tl.int64) * K + k) * segments + number
    tl.store(ends + own * N * d + cells, h, mask=real)
    tl.store(sums + own * d + lane, total, mask=here)


@triton.jit(do_not_specialize=["segments"])
def carry(A, sums, ends, begin, d, K, segments, N: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """Turns `ends` in place into what enters each segment; `begin` (batch, K, N, d), or None for zeros, enters the first."""
    cell = tl.program_id(0)
    blocks = tl.cdiv(N * d, BLOCK)
    e = cell % blocks * BLOCK + tl.arange(0, BLOCK)
    here = e < N * d
    own = tl.cast(cell // blocks, tl.int64)
    decay = tl.load(A + (own % K) * N * d + e, mask=here, other=0.0)
    h = tl.zeros([BLOCK], tl.float32)
    if begin is not None:
        h = tl.load(begin + own * N * d + e, mask=here, other=0.0)
    for i in range(segments):
        at = own * segments + (segments - 1 - i if REVERSE else i)
        end = tl.load(ends + at * N * d + e, mask=here, other=0.0)
        total = tl.load(sums + at * d + e % d, mask=here, other=0.0)
        tl.store(ends + at * N * d + e, h, mask=here)
        # in two halves, and not of 0: for A > 0 the decay of a whole segment may overflow where no state does
        half = tl.exp2(0.5 * decay * total)
        h = tl.where(h == 0.0, 0.0, h * half * half) + end


@triton.jit(do_not_specialize=["L", "slots", "segments", "size", "walks", "add"])
def backward(
    x,
    delta,
    A,
    B,
    C,
    D,
    bias,
    dy,
    saved,
    q,
    inner,
    dx,
    ddelta,
    dA,
    dB,
    dC,
    dD,
    dbias,
    d,
    K,
    L,
    slots,
    segments,
    size,
    walks,
    add,
    N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    MEMBERS: tl.constexpr,
    STEPS: tl.constexpr,
    STRAIGHT: tl.constexpr,
    WIDE: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    """All gradients of the directions of one launch. Chunks of STEPS, and tiles of T in them, are taken from the last to the first.

    A tile takes one state after the other: it recomputes the T values of that state, then walks back over them. `q`
    (batch, K, segments, N, d) holds, between tiles, the gradient that reaches a state from the future; at the beginning that is what
    enters the segment from behind. `inner` (batch, K, segments, STEPS // T - 1, N, d) is room for the states before the second,
    third, .. tile of a chunk. dA, dD, dbias, and dB, dC of constant B, C, are sums over a segment, (batch, K, segments, ..); dB and dC
    of other B, C are sums over a block of channels, (blocks, batch, L, K, N).
    """
    cell = tl.program_id(0)
    blocks = tl.cdiv(d, BLOCK)
    block = cell % blocks
    lane = block * BLOCK + tl.arange(0, BLOCK)
    here = lane < d
    segment = cell // blocks % segments
    batch = tl.num_programs(0) // blocks // segments // (DIRECTIONS // MEMBERS)
    cell = cell // blocks // segments
    group, b = cell % (DIRECTIONS // MEMBERS), cell // (DIRECTIONS // MEMBERS)
    ns = tl.arange(0, STATES)
    cells = tl.max_contiguous(ns[:, None] * d + lane[None, :], [1, BLOCK // 32])
    real = (ns[:, None] < N) & here[None, :]
    INNER: tl.constexpr = STEPS // T - 1
    for member in range(MEMBERS):
        walk = _direction(walks, group * MEMBERS + member, DIRECTIONS)
        k = walk[0]
        number, lead, begin, end = _segment(walk[5], segment, segments, size, L)
        own = tl.cast(b, tl.int64) * K + k
        part = own * segments + number
        A_at = A + k * N * d
        x_at, delta_at, dy_at = _base(x, b, k) + lane, _base(delta, b, k) + lane, _base(dy, b, k) + lane
        dx_at, ddelta_at = _base(dx, b, k) + lane, _base(ddelta, b, k) + lane
        B_at, C_at = _base(B, b, k), _base(C, b, k)
        q_at, dA_at = q + part * N * d + lane, dA + part * N * d + lane
        inner_at = inner + part * INNER * N * d
        # row 0 of (blocks, batch, L, K, N) for this block, batch entry and direction; its pixels are K * N apart
        flat = (tl.cast(block, tl.int64) * batch + b) * L * K * N + k * N
        dB_at = dB + (part * N * d + lane if B[2] is None else flat)
        dC_at = dC + (part * N * d + lane if C[2] is None else flat)
        shift = tl.load(bias + k * d + lane, mask=here, other=0.0) if bias is not None else 0.0
        if D is not None:
            skip = tl.load(D + k * d + lane, mask=here, other=0.0)
        adds = here & ((member > 0) | (add != 0))
        sum_D = tl.zeros([BLOCK], tl.float32)
        sum_bias = tl.zeros([BLOCK], tl.float32)
        chunks = tl.cdiv(end, STEPS) - begin // STEPS
        for chunk in range(chunks):
            low = tl.cdiv(end, STEPS) * STEPS - (chunk + 1) * STEPS
            high = tl.minimum(low + STEPS, end)
            saved_at = saved + (own * slots + (low // STEPS - lead // STEPS)) * N * d
            low = tl.maximum(low, begin) // T * T
            tiles = tl.cdiv(high - low, T)
            if INNER > 0:
                _fill(
                    x_at, delta_at, A_at, B_at, saved_at, inner_at, x[2], delta[2], B[2],
                    shift, walk, lead, low, begin, high, tiles, here, cells, real, ns, d, N, SOFTPLUS, STRAIGHT, WIDE, T,
                )  # fmt: skip
                tl.debug_barrier()
            for tile in range(tiles):
                place = tiles - 1 - tile
                u = low + place * T
                pixels, inside = _tile(walk, lead, u, begin, high, STRAIGHT, WIDE, T)
                xs, deltas = _rows(x_at, pixels, x[2], here, T), _rows(delta_at, pixels, delta[2], here, T)
                steps = _steps(deltas, shift, inside, SOFTPLUS, T)
                dys = ()
                for i in tl.static_range(T):
                    dys = dys + (tl.load(dy_at + pixels[i] * dy[2], mask=here & inside[i], other=0.0),)
                before = saved_at
                if INNER > 0:
                    before = tl.where(place == 0, saved_at, inner_at + (place - 1) * N * d)
                w, z = (
                    (),
                    (),
                )  # gradients of s B x over B, and of the exponents over log2(e): sums over the states
                for _ in tl.static_range(T):
                    w, z = w + (tl.zeros([BLOCK], tl.float32),), z + (tl.zeros([BLOCK], tl.float32),)
                for n in range(N):
                    decay = tl.load(A_at + n * d + lane, mask=here, other=0.0)
                    h = tl.load(before + n * d + lane, mask=here, other=0.0)
                    g = tl.load(q_at + n * d, mask=here, other=0.0)
                    started = here & (chunk + tile > 0)
                    sum_A = tl.load(dA_at + n * d, mask=started, other=0.0)
                    if B[2] is None:
                        b_n = tl.load(B_at + n * d + lane, mask=here, other=0.0).to(tl.float32)
                        sum_B = tl.load(dB_at + n * d, mask=started, other=0.0)
                    if C[2] is None:
                        c_n = tl.load(C_at + n * d + lane, mask=here, other=0.0).to(tl.float32)
                        sum_C = tl.load(dC_at + n * d, mask=started, other=0.0)
                    factors, kept, b_ns = (), (), ()  # exp(s A), exp(s A) h, B
                    for i in tl.static_range(T):
                        if B[2] is not None:
                            b_n = tl.load(B_at + pixels[i] * B[2] + n).to(tl.float32)
                        a = tl.exp2(decay * steps[i])
                        h = a * h
                        factors, kept, b_ns = factors + (a,), kept + (h,), b_ns + (b_n,)
                        h += b_n * (steps[i] * xs[i].to(tl.float32))
                        if C[2] is None:
                            sum_C += dys[i] * h
                        else:
                            tl.store(dC_at + pixels[i] * K * N + n, tl.sum(dys[i] * h, 0), mask=inside[i])
                    new_w, new_z = (), ()
                    for i in tl.static_range(T - 1, -1, -1):
                        if C[2] is not None:
                            c_n = tl.load(C_at + pixels[i] * C[2] + n).to(tl.float32)
                        g += c_n * dys[i]
                        sx = steps[i] * xs[i].to(tl.float32)
                        if B[2] is None:
                            sum_B += g * sx
                        else:
                            tl.store(dB_at + pixels[i] * K * N + n, tl.sum(g * sx, 0), mask=inside[i])
                        new_w = (w[i] + g * b_ns[i],) + new_w
                        p = g * kept[i]
                        sum_A += p * steps[i]
                        new_z = (z[i] + p * decay,) + new_z
                        g = factors[i] * g
                    w, z = new_w, new_z
                    tl.store(q_at + n * d, g, mask=here)
                    tl.store(dA_at + n * d, sum_A, mask=here)
                    if B[2] is None:
                        tl.store(dB_at + n * d, sum_B, mask=here)
                    if C[2] is None:
                        tl.store(dC_at + n * d, sum_C, mask=here)
                dxs = _rows(dx_at, pixels, dx[2], adds, T)
                for i in tl.static_range(T):
                    mask = here & inside[i]
                    value = xs[i].to(tl.float32)
                    step = LN2 * z[i] + value * w[i]
                    if SOFTPLUS:
                        step *= _logistic(deltas[i].to(tl.float32) + shift)
                    step = tl.where(mask, step, 0.0)
                    sum_bias += step
                    sum_D += dys[i] * value
                    tl.store(
                        ddelta_at + pixels[i] * ddelta[2], step.to(ddelta[0].dtype.element_ty), mask=mask
                    )
                    total = dxs[i] + steps[i] * w[i]
                    if D is not None:
                        total += skip * dys[i]
                    tl.store(dx_at + pixels[i] * dx[2], total, mask=mask)
                tl.debug_barrier()  # q, dA and the sums are read again by the next tile
        if dD is not None:
            tl.store(dD + part * d + lane, sum_D, mask=here)
        if dbias is not None:
            tl.store(dbias + part * d + lane, sum_bias, mask=here)


@triton.jit
def _fill(
    x_at, delta_at, A_at, B_at, saved_at, inner_at, x_stride, delta_stride, B_stride,
    shift, walk, lead, low, begin, high, tiles, here, cells, real, n, d,
    N: tl.constexpr, SOFTPLUS: tl.constexpr, STRAIGHT: tl.constexpr, WIDE: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Writes the states before all but the first of the tiles from `low` on to `inner_at`."""
    decay = tl.load(A_at + cells, mask=real, other=0.0)
    h = tl.load(saved_at + cells, mask=real, other=0.0)
    if B_stride is None:
        row = tl.load(B_at + cells, mask=real, other=0.0).to(tl.float32)
    for tile in range(tiles - 1):
        u = low + tile * T
        pixels, inside = _tile(walk, lead, u, begin, high, STRAIGHT, WIDE, T)
        xs = _rows(x_at, pixels, x_stride, here, T)
        steps = _steps(_rows(delta_at, pixels, delta_stride, here, T), shift, inside, SOFTPLUS, T)
        for i in tl.static_range(T):
            if B_stride is not None:
                row = _states(B_at, pixels[i], B_stride, n, N)
            h = tl.exp2(decay * steps[i][None, :]) * h + row * (steps[i] * xs[i].to(tl.float32))[None, :]
        tl.store(inner_at + tile * N * d + cells, h, mask=real)
