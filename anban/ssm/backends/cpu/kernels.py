"""The scan as vector code: lanes are channels, a step in time is a step in the loop.

A block of `lanes` channels walks along the pixels with its N states in registers; y needs no sum across lanes, B and C are one
number for all lanes. Channels lie next to each other in memory, so a pixel is one load and the four scan directions are four
lists of pixels.

Every function here writes one kernel for a number of states and a processor; nothing in it depends on sizes, which the kernel
reads from its arguments.
"""

from __future__ import annotations

from anban.ssm.backends.cpu.emit import Emitter, Value
from anban.ssm.backends.cpu.functions import LOG2E, exp2, logistic, softplus

STEPS = 32
"""Steps in a chunk; the states before every chunk are kept for the backward pass."""

FORWARD = [
    "counter",
    "units",
    "blocks",
    "pixels",
    "inner",
    "outer",
    "save",
    "walks",
    "x",
    "delta",
    "A",
    "B",
    "C",
    "D",
    "bias",
    "y",
    "last",
    "saved",
    "x_batch",
    "x_pixel",
    "x_direction",
    "delta_batch",
    "delta_pixel",
    "delta_direction",
    "B_batch",
    "B_pixel",
    "B_direction",
    "B_state",
    "C_batch",
    "C_pixel",
    "C_direction",
    "C_state",
]
"""The arguments of the forward kernel, 64-bit integers, in order."""


def forward(
    k: Emitter, states: int, softplus_on: bool, constant_B: bool, constant_C: bool, width: int = 1
) -> str:
    """y and the last state of one unit: a batch entry, a group of directions that share x, `width` blocks of channels."""
    a = {name: k.argument(place) for place, name in enumerate(FORWARD)}
    bytes_ = 4 * k.lanes
    channels = a["blocks"] * (bytes_ * width)  # bytes of one row of channels
    path = k.scratch(4 * STEPS)
    with k.loop(2 * STEPS) as t:
        k.store_integer(path, t * 8, k.integer(0))
    with k.work(a["counter"], a["units"]) as unit:
        block = (unit % a["blocks"]) * (bytes_ * width)
        rest = unit // a["blocks"]
        group, batch = rest % a["outer"], rest // a["outer"]
        y = a["y"] + ((batch * a["pixels"]) * a["outer"] + group) * channels + block
        y_pixel = a["outer"] * channels
        with k.loop(a["inner"]) as inner:
            direction = group * a["inner"] + inner
            first = k.is_zero(inner)
            x = a["x"] + batch * a["x_batch"] + group * a["x_direction"] + block
            delta = a["delta"] + batch * a["delta_batch"] + direction * a["delta_direction"] + block
            B = a["B"] + batch * a["B_batch"] + direction * a["B_direction"]
            C = a["C"] + batch * a["C_batch"] + direction * a["C_direction"]
            A = a["A"] + direction * (channels * states) + block
            fields = [
                [k.load(a[name] + direction * channels + block, m * bytes_) for m in range(width)]
                for name in ("D", "bias")
            ]
            skips, biases = fields
            one = batch * (a["outer"] * a["inner"]) + direction  # number of the sequence
            state = one * (channels * states) + block
            saved = k.variable(
                a["saved"] + one * (channels * states) * ((a["pixels"] + (STEPS - 1)) // STEPS) + block
            )
            h = [[k.variable(k.real(0.0)) for _ in range(states)] for _ in range(width)]
            walker = Walker(k, a["walks"] + direction * 32)
            walker.write(path, k.smaller(a["pixels"], STEPS))
            with k.loop((a["pixels"] + (STEPS - 1)) // STEPS) as chunk:
                count = k.smaller(a["pixels"] - chunk * STEPS, STEPS)
                with k.when(k.builder.icmp_signed("!=", a["save"].raw, k.integer(0).raw)):
                    for n in range(states):
                        for m in range(width):
                            k.store(saved.get(), channels * n + m * bytes_, h[m][n].get())
                    saved.set(saved.get() + channels * states)
                here = path + (chunk % 2) * (8 * STEPS)
                ahead = path + ((chunk + 1) % 2) * (8 * STEPS)
                walker.write(ahead, k.smaller(a["pixels"] - (chunk + 1) * STEPS, STEPS))
                with k.loop(count) as t:
                    p = k.load_integer(here, t * 8)
                    soon = k.load_integer(ahead, t * 8)
                    for m in range(width):
                        k.prefetch(delta, soon * a["delta_pixel"] + m * bytes_)
                        k.prefetch(x, soon * a["x_pixel"] + m * bytes_)
                    for m in range(width):
                        place = m * bytes_
                        value = k.load(x, p * a["x_pixel"] + place)
                        step = k.load(delta, p * a["delta_pixel"] + place) + biases[m]
                        if softplus_on:
                            step, _ = softplus(k, step)
                        drive = step * value
                        out = skips[m] * value
                        for n in range(states):
                            decay = exp2(k, step * k.load(A, channels * n + place))
                            b = (
                                k.load(B, channels * n + place + block)
                                if constant_B
                                else k.broadcast(B, p * a["B_pixel"] + a["B_state"] * n)
                            )
                            c = (
                                k.load(C, channels * n + place + block)
                                if constant_C
                                else k.broadcast(C, p * a["C_pixel"] + a["C_state"] * n)
                            )
                            now = k.fma(decay, h[m][n].get(), drive * b)
                            h[m][n].set(now)
                            out = k.fma(c, now, out)
                        before = k.choose(first, k.real(0.0), k.load(y, p * y_pixel + place))
                        k.store(y, p * y_pixel + place, before + out)
            for n in range(states):
                for m in range(width):
                    k.store(a["last"] + state, channels * n + m * bytes_, h[m][n].get())
    return k.finish()


class Walker:
    """Follows a walk and writes the pixels of a chunk to a list."""

    def __init__(self, k: Emitter, walk: Value):
        self.k = k
        start, self.step, self.count, jump = (k.load_integer(walk, 8 * i) for i in range(4))
        self.turn = jump - self.step * (
            self.count - 1
        )  # from the last pixel of a line to the first of the next
        self.start, self.jump = start, jump
        self.pixel, self.left = k.variable(start), k.variable(self.count)

    def seek(self, position: Value) -> None:
        """Go on from there."""
        line, place = position // self.count, position % self.count
        self.pixel.set(self.start + line * self.jump + place * self.step)
        self.left.set(self.count - place)

    def write(self, path: Value, count: Value) -> None:
        k = self.k
        with k.loop(count) as t:
            k.store_integer(path, t * 8, self.pixel.get())
            left = self.left.get() - 1
            ended = k.is_zero(left)
            self.left.set(k.choose(ended, self.count, left))
            self.pixel.set(self.pixel.get() + k.choose(ended, self.turn, self.step))


BACKWARD = [
    "counter",
    "units",
    "blocks",
    "slice",
    "pixels",
    "inner",
    "outer",
    "walks",
    "x",
    "delta",
    "A",
    "B",
    "C",
    "D",
    "bias",
    "saved",
    "dy",
    "dlast",
    "dx",
    "ddelta",
    "dA",
    "dB",
    "dC",
    "dD",
    "dbias",
    "x_batch",
    "x_pixel",
    "x_direction",
    "delta_batch",
    "delta_pixel",
    "delta_direction",
    "B_batch",
    "B_pixel",
    "B_direction",
    "B_state",
    "C_batch",
    "C_pixel",
    "C_direction",
    "C_state",
    "ddelta_batch",
    "ddelta_pixel",
    "ddelta_direction",
]
"""The arguments of the backward kernel, 64-bit integers, in order."""

LARGEST_SLICE = 8


def backward(
    k: Emitter, states: int, softplus_on: bool, constant_B: bool, constant_C: bool, together: int = 1
) -> str:
    """All gradients of one unit.

    Chunk by chunk from the end: the states of the chunk are computed again from the one kept before it, then the chunk is walked
    back with the gradient of the state, g_t = C_t dy_t + a_{t+1} g_{t+1}. dB and dC are sums over channels: they are added up
    lane by lane over the blocks of the slice and across the lanes once per chunk.

    Args:
        together: states that are handled in one pass over the chunk.
    """
    a = {name: k.argument(place) for place, name in enumerate(BACKWARD)}
    row = 4 * k.lanes
    channels = a["blocks"] * row
    tile = STEPS * k.lanes
    path = k.scratch(4 * STEPS)
    s_, sigma_, du_, x_, dy_, s1_, s2_ = (k.scratch(tile) for _ in range(7))
    a_, ah_ = (k.scratch(tile * together) for _ in range(2))
    lanes_B, lanes_C = (k.scratch(tile * states) for _ in range(2))
    sums = k.scratch(STEPS * states + k.lanes)
    carries = k.scratch(LARGEST_SLICE * states * k.lanes)
    chunks = (a["pixels"] + (STEPS - 1)) // STEPS
    slices = a["blocks"] // a["slice"]

    with k.work(a["counter"], a["units"]) as unit:
        part, rest = unit % slices, unit // slices
        group, batch = rest % a["outer"], rest // a["outer"]
        y_pixel = a["outer"] * channels
        offset = ((batch * a["pixels"]) * a["outer"] + group) * channels + part * a["slice"] * row
        dy, dx = a["dy"] + offset, a["dx"] + offset
        with k.loop(a["inner"]) as inner:
            direction = group * a["inner"] + inner
            first_direction = k.is_zero(inner)
            here = part * a["slice"] * row
            x = a["x"] + batch * a["x_batch"] + group * a["x_direction"] + here
            delta = a["delta"] + batch * a["delta_batch"] + direction * a["delta_direction"] + here
            ddelta = a["ddelta"] + batch * a["ddelta_batch"] + direction * a["ddelta_direction"] + here
            B = a["B"] + batch * a["B_batch"] + direction * a["B_direction"] + (here if constant_B else 0)
            C = a["C"] + batch * a["C_batch"] + direction * a["C_direction"] + (here if constant_C else 0)
            A = a["A"] + direction * (channels * states) + here
            one = batch * (a["outer"] * a["inner"]) + direction  # number of the sequence
            state = one * (channels * states) + here
            vector = one * channels + here
            D, bias = a["D"] + direction * channels + here, a["bias"] + direction * channels + here
            walker = Walker(k, a["walks"] + direction * 32)
            # dB and dC of the slice: (slice, batch, K, P, N), so that a unit writes one run of memory per pixel
            place = (part * (a["units"] // slices) * a["inner"] + one) * a["pixels"] * (4 * states)
            with k.loop(a["slice"]) as block, k.loop(states) as n:
                k.store(
                    carries,
                    (block * states + n) * row,
                    k.load(a["dlast"] + state, channels * n + block * row),
                )
            with k.loop(chunks, backwards=True) as chunk:
                count = k.smaller(a["pixels"] - chunk * STEPS, STEPS)
                walker.seek(chunk * STEPS)
                walker.write(path, count)
                with k.when(k.builder.icmp_signed(">", chunk.raw, k.integer(0).raw)):
                    walker.seek((chunk - 1) * STEPS)
                    walker.write(path + 8 * STEPS, k.integer(STEPS))
                kept = a["saved"] + (one * chunks + chunk) * (channels * states) + here
                with k.loop(a["slice"]) as block:
                    column = block * row
                    first_block = k.is_zero(block)
                    shift = k.load(bias, column)
                    with k.loop(count) as t:
                        p = k.load_integer(path, t * 8)
                        step = k.load(delta, p * a["delta_pixel"] + column) + shift
                        if softplus_on:
                            raw = step
                            step, tail = softplus(k, raw)
                            k.store(sigma_, t * row, logistic(k, raw, tail), align=64)
                        soon = k.load_integer(path, t * 8 + 8 * STEPS)
                        k.prefetch(delta, soon * a["delta_pixel"] + column)
                        k.prefetch(x, soon * a["x_pixel"] + column)
                        k.prefetch(dy, soon * y_pixel + column)
                        value = k.load(x, p * a["x_pixel"] + column)
                        k.store(s_, t * row, step, align=64)
                        k.store(x_, t * row, value, align=64)
                        k.store(du_, t * row, step * value, align=64)
                        k.store(dy_, t * row, k.load(dy, p * y_pixel + column), align=64)
                        if states > together:
                            k.store(s1_, t * row, k.real(0.0), align=64)
                            k.store(s2_, t * row, k.real(0.0), align=64)

                    def factor(matrix: Value, kind: str, constant: bool, p: Value, n: Value) -> Value:
                        if constant:
                            return k.load(matrix, channels * n + column)
                        return k.broadcast(matrix, p * a[f"{kind}_pixel"] + n * a[f"{kind}_state"])

                    def sweep(start: Value, number: int) -> None:
                        """The states start, ..., start + number - 1 of this block over this chunk, there and back."""
                        every = [start + i for i in range(number)]
                        power = [k.load(A, channels * n + column) for n in every]
                        h = [k.variable(k.load(kept, channels * n + column)) for n in every]
                        with k.loop(count) as t:
                            p = k.load_integer(path, t * 8)
                            step, drive = k.load(s_, t * row, 64), k.load(du_, t * row, 64)
                            for i, n in enumerate(every):
                                decay = exp2(k, step * power[i])
                                faded = decay * h[i].get()
                                k.store(a_, t * (row * together) + i * row, decay, align=64)
                                k.store(ah_, t * (row * together) + i * row, faded, align=64)
                                h[i].set(k.fma(drive, factor(B, "B", constant_B, p, n), faded))
                        g = [k.variable(k.load(carries, (block * states + n) * row)) for n in every]
                        totals = {
                            name: [k.variable(k.real(0.0)) for n in every]
                            for name in (
                                "dA",
                                *(["dB"] if constant_B else []),
                                *(["dC"] if constant_C else []),
                            )
                        }
                        with k.loop(count, backwards=True) as t:
                            p = k.load_integer(path, t * 8)
                            step, drive, grad = (
                                k.load(s_, t * row, 64),
                                k.load(du_, t * row, 64),
                                k.load(dy_, t * row, 64),
                            )
                            if states > together:
                                s1, s2 = k.load(s1_, t * row, 64), k.load(s2_, t * row, 64)
                            else:
                                s1, s2 = k.real(0.0), k.real(0.0)
                            for i, n in enumerate(every):
                                b, c = factor(B, "B", constant_B, p, n), factor(C, "C", constant_C, p, n)
                                decay = k.load(a_, t * (row * together) + i * row, 64)
                                faded = k.load(ah_, t * (row * together) + i * row, 64)
                                now = k.fma(c, grad, g[i].get())
                                through = now * faded
                                s1 = k.fma(now, b, s1)
                                s2 = k.fma(through, power[i], s2)
                                totals["dA"][i].set(k.fma(through, step, totals["dA"][i].get()))
                                g[i].set(now * decay)
                                reached = k.fma(drive, b, faded)
                                for name, lanes, left, right in (
                                    ("dB", lanes_B, now, drive),
                                    ("dC", lanes_C, grad, reached),
                                ):
                                    if name in totals:
                                        totals[name][i].set(k.fma(left, right, totals[name][i].get()))
                                    else:
                                        spot = (t * states + n) * row
                                        before = k.choose(first_block, k.real(0.0), k.load(lanes, spot, 64))
                                        k.store(lanes, spot, k.fma(left, right, before), align=64)
                            if states > together:
                                k.store(s1_, t * row, s1, align=64)
                                k.store(s2_, t * row, s2, align=64)
                            else:
                                finish(t, p, s1, s2)
                        for i, n in enumerate(every):
                            k.store(carries, (block * states + n) * row, g[i].get())
                            for name, variables in totals.items():
                                add(k, a[name] + state, channels * n + column, variables[i].get())

                    skip = k.load(D, column)
                    total_D, total_bias = (k.variable(k.real(0.0)) for _ in range(2))

                    def finish(t: Value, p: Value, s1: Value, s2: Value) -> None:
                        """The gradients of x and delta at one pixel, from the sums over the states."""
                        step, value, grad = (k.load(m, t * row, 64) for m in (s_, x_, dy_))
                        change = k.fma(value, s1, s2 * (1 / LOG2E))
                        if softplus_on:
                            change = change * k.load(sigma_, t * row, 64)
                        k.store(ddelta, p * a["ddelta_pixel"] + column, change)
                        total_bias.set(total_bias.get() + change)
                        total_D.set(k.fma(grad, value, total_D.get()))
                        before = k.choose(first_direction, k.real(0.0), k.load(dx, p * y_pixel + column))
                        k.store(dx, p * y_pixel + column, k.fma(step, s1, k.fma(skip, grad, before)))

                    if states > together:
                        with k.loop(states // together) as passed:
                            sweep(passed * together, together)
                        if states % together:
                            sweep(k.integer(states - states % together), states % together)
                        with k.loop(count) as t:
                            finish(
                                t,
                                k.load_integer(path, t * 8),
                                k.load(s1_, t * row, 64),
                                k.load(s2_, t * row, 64),
                            )
                    else:
                        sweep(k.integer(0), states)
                    add(k, a["dD"] + vector, column, total_D.get())
                    add(k, a["dbias"] + vector, column, total_bias.get())
                for lanes, name, constant in ((lanes_B, "dB", constant_B), (lanes_C, "dC", constant_C)):
                    if not constant:
                        spread(k, lanes, sums, count * states)
                        with k.loop(count) as t:
                            target = a[name] + place + k.load_integer(path, t * 8) * (4 * states)
                            copy(k, target, sums + t * (4 * states), states)
    return k.finish()


def add(k: Emitter, address: Value, offset: Value, value: Value) -> None:
    """Chunk sums are added up, not single steps: a sum over a long sequence keeps its digits."""
    k.store(address, offset, k.load(address, offset) + value)


def spread(k: Emitter, rows: Value, sums: Value, count: Value) -> None:
    """sums[i] = the sum of the lanes of rows[i], for i below `count` (rounded up to a multiple of the lanes)."""
    row = 4 * k.lanes
    with k.loop((count + (k.lanes - 1)) // k.lanes) as group:
        vectors = [k.load(rows + group * (row * k.lanes), i * row, 64) for i in range(k.lanes)]
        k.store(sums, group * row, across(k, vectors))


def across(k: Emitter, vectors: list[Value]) -> Value:
    """The vector whose lane i is the sum of the lanes of vectors[i]: a tree of shuffles, half as many vectors at every level."""
    distance = 1
    while len(vectors) > 1:
        low = [i + (0 if not i & distance else k.lanes - distance) for i in range(k.lanes)]
        high = [i + distance + (0 if not i & distance else k.lanes - distance) for i in range(k.lanes)]
        vectors = [
            k.shuffle(one, two, low) + k.shuffle(one, two, high)
            for one, two in zip(vectors[::2], vectors[1::2], strict=True)
        ]
        distance *= 2
    return vectors[0]


def copy(k: Emitter, target: Value, source: Value, floats: int) -> None:
    whole = floats // k.lanes * k.lanes
    for i in range(0, whole, k.lanes):
        k.store(target, 4 * i, k.load(source, 4 * i))
    for i in range(whole, floats):
        k.copy_float(target, source, 4 * i)
