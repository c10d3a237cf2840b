"""The scan as vector code: lanes are channels, a step in time is a step in the loop.

A block of `lanes` channels walks along the pixels with its states in registers; y needs no sum across lanes, B and C are one
number for all lanes. Channels lie next to each other in memory, so a pixel is one load, and the four scan directions are four
lists of pixels: nothing is flipped, transposed or copied.

A kernel is written for a number of states and a processor. Sizes and strides are read from its arguments, so no shape needs a
kernel of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from anban.ssm.backends.cpu import LOG2E, STEPS
from anban.ssm.backends.cpu.emit import Emitter, Value, Variable
from anban.ssm.backends.cpu.functions import exp2, logistic, softplus

LARGEST_SLICE = 8
"""Blocks of channels in a unit of the backward pass, at most."""


def _strides(*tensors: str) -> list[str]:
    return [f"{name}_{dim}" for name in tensors for dim in ("batch", "pixel", "direction", "state")]


_SIZES = ["counter", "units", "blocks", "pixels", "inner", "outer"]
_INPUTS = ["x", "delta", "A", "B", "C", "D", "bias", "walks"]
FORWARD = (*_SIZES, "save", *_INPUTS, "y", "last", "saved", *_strides("x", "delta", "B", "C"))
BACKWARD = (
    *(*_SIZES, "slice", *_INPUTS, "saved", "dy", "dlast"),
    *("dx", "ddelta", "dA", "dB", "dC", "dD", "dbias"),
    *_strides("x", "delta", "B", "C", "ddelta"),
)
TRANSPOSE = (
    *("counter", "units", "blocks", "rows", "columns", "source", "target"),
    *("source_row", "source_plane", "target_row", "target_plane"),
)
"""The arguments of the kernels, 64-bit integers, in this order: numbers, addresses, strides in bytes.

`units` pieces of work are taken from `counter`; `blocks` pieces of the channels (`slice` of them in a unit of the backward pass);
`outer` groups of `inner` directions each read one x and add to one y. `..._pixel` is the stride from pixel to pixel; of sequences whose
steps lie next to each other ("turned"), that from channel to channel.
"""


def forward(
    k: Emitter, states: int, with_softplus: bool, constant: tuple[bool, bool], turned: bool, width: int
) -> str:
    """y and the last states. A unit is a batch entry, a group of directions, a block of `width` vectors of channels."""
    return _Forward(k, states, with_softplus, constant, turned, FORWARD, width).write()


def transpose(k: Emitter) -> str:
    """Rows become columns, `lanes` of each at a time; for sequences that come as (channels, steps).

    A unit is a plane and a block of rows. Rows and columns are at least `lanes`; the last block and the last tile reach back over
    what was written before.
    """
    a = {name: k.argument(place) for place, name in enumerate(TRANSPOSE)}
    with k.work(a["counter"], a["units"]) as unit:
        plane, block = unit // a["blocks"], unit % a["blocks"]
        row = k.smaller(block * k.lanes, a["rows"] - k.lanes)
        source = a["source"] + plane * a["source_plane"] + row * a["source_row"]
        target = a["target"] + plane * a["target_plane"] + row * 4
        with k.loop((a["columns"] + (k.lanes - 1)) // k.lanes) as tile:
            column = k.smaller(tile * k.lanes, a["columns"] - k.lanes)
            turn(k, source + column * 4, a["source_row"], target + column * a["target_row"], a["target_row"])
    return k.finish()


def backward(
    k: Emitter,
    states: int,
    with_softplus: bool,
    constant: tuple[bool, bool],
    turned: bool,
    past_cache: bool,
) -> str:
    """All gradients. A unit is a batch entry, a group of directions, a slice of several blocks of channels.

    Chunk by chunk from the end: the states of the chunk are computed again from the ones kept before it, then the chunk is walked
    back with the gradient of the state, g_t = C_t dy_t + a_{t+1} g_{t+1}. dB and dC are sums over channels: they are added up lane
    by lane over the blocks of the slice, and across the lanes once per chunk. `past_cache`: the gradient of delta, the largest result,
    goes to memory directly.
    """
    kernel = _Backward(k, states, with_softplus, constant, turned, BACKWARD)
    kernel.past_cache = past_cache and not turned
    return kernel.write()


def turn(k: Emitter, source: Value, source_row: Value | int, target: Value, target_row: Value | int) -> None:
    """Transpose one tile of `lanes` rows and columns: at every distance, half of each vector changes places with its partner."""
    vectors = [k.load(source, k.integer(i) * source_row) for i in range(k.lanes)]
    distance = 1
    while distance < k.lanes:
        low = [k.lanes + i - distance if i & distance else i for i in range(k.lanes)]
        high = [k.lanes + i if i & distance else i + distance for i in range(k.lanes)]
        for i in range(k.lanes):
            if not i & distance:
                pair = vectors[i], vectors[i + distance]
                vectors[i], vectors[i + distance] = k.shuffle(*pair, low), k.shuffle(*pair, high)
        distance *= 2
    for i, vector in enumerate(vectors):
        k.store(target, k.integer(i) * target_row, vector)


class _Kernel:
    """What the two have in common: their arguments, and where the tensors of a sequence lie.

    Tensors with channels and pixels are found by `at`. Of turned sequences it finds a chunk's copy in scratch memory, which
    `turn_in` and `turn_out` exchange with the tensor itself tile by tile; so all else is the same for both layouts.
    """

    def __init__(
        self,
        k: Emitter,
        states: int,
        with_softplus: bool,
        constant: tuple[bool, bool],
        turned: bool,
        names: tuple[str, ...],
        width: int = 1,
    ):
        self.k, self.states, self.with_softplus, self.turned = k, states, with_softplus, turned
        self.constant = dict(zip("BC", constant, strict=True))
        self.a = a = {name: k.argument(place) for place, name in enumerate(names)}
        self.row = 4 * k.lanes * width  # bytes of a block at one pixel
        self.channels = a["blocks"] * self.row
        self.chunks = (a["pixels"] + (STEPS - 1)) // STEPS
        self.path, self.path_ahead = k.scratch(2 * STEPS), k.scratch(2 * STEPS)
        with k.loop(STEPS) as t:
            k.store_integer(self.path_ahead, t * 8, k.integer(0))
        y_stride = a["pixels"] * 4 if turned else a["outer"] * self.channels
        self.given = {name: a.get(f"{name}_pixel", y_stride) for name in ("x", "delta", "ddelta", "y", "dx")}
        self.strides = {name: k.integer(self.row) if turned else self.given[name] for name in self.given}
        self.addresses: dict[str, Value] = {}
        # a tile at the end of a sequence reaches back over the chunk before
        rows = STEPS + k.lanes
        self.tiles = {name: k.scratch(rows * k.lanes) for name in self.given} if turned else {}

    def unit(self, batch: Value, group: Value, inner: Value, here: Value) -> None:
        """Addresses of one sequence, from the channels that begin `here` bytes into a row."""
        a = self.a
        direction = group * a["inner"] + inner
        self.sequence = batch * (a["outer"] * a["inner"]) + direction
        for name, number in (("x", group), ("delta", direction), ("ddelta", direction)):
            if name in a:
                address = a[name] + batch * a[f"{name}_batch"] + number * a[f"{name}_direction"]
                self.addresses[name] = address + self.inside(name, here)
        self.matrices = {
            name: a[name]
            + batch * a[f"{name}_batch"]
            + direction * a[f"{name}_direction"]
            + (here if self.constant[name] else 0)
            for name in "BC"
        }
        self.A = a["A"] + direction * (self.channels * self.states) + here
        self.D = a["D"] + direction * self.channels + here
        self.bias = a["bias"] + direction * self.channels + here
        self.state = self.sequence * (self.channels * self.states) + here
        self.walk = Walk(self.k, a["walks"] + direction * 32)

    def split(self, unit: Value, parts: Value) -> tuple[Value, Value]:
        """The batch entry of a unit, and the rest. Neighbours in time differ in the entry: threads keep out of each other's lines."""
        batches = self.a["units"] // (parts * self.a["outer"])
        return unit % batches, unit // batches

    def of_y(self, batch: Value, group: Value, here: Value) -> Value:
        """Bytes from the beginning of y to the first of these channels of a group."""
        a = self.a
        if self.turned:
            return (batch * a["outer"] + group) * self.channels * a["pixels"] + self.inside("y", here)
        return ((batch * a["pixels"]) * a["outer"] + group) * self.channels + here

    def inside(self, name: str, here: Value) -> Value:
        """Bytes from a tensor's first channel to the one that begins `here` bytes into a row of channels."""
        return (here // 4) * self.given[name] if self.turned else here

    def at(self, name: str, pixel: Value, column: Value | int) -> tuple[Value, Value]:
        """Address and offset of a tensor's channels at a pixel; "y" is dy in the backward pass."""
        return self.addresses[name], pixel * self.strides[name] + column

    def turn_in(self, name: str, memory: Value, chunk: Value, column: Value | int) -> None:
        """Bring a chunk's steps to scratch memory, as rows of channels."""
        self.find(name, chunk, column)
        with self.each_tile(name, chunk, column) as (step, rows):
            turn(self.k, memory + step * 4, self.given[name], rows, self.row)

    def turn_out(self, name: str, memory: Value, chunk: Value, column: Value | int) -> None:
        """Take them back."""
        with self.each_tile(name, chunk, column) as (step, rows):
            turn(self.k, rows, self.row, memory + step * 4, self.given[name])

    def find(self, name: str, chunk: Value, column: Value | int) -> None:
        """From now on `at` means the scratch memory of this chunk."""
        self.addresses[name] = (
            self.tiles[name] + self.row * self.k.lanes - chunk * (STEPS * self.row) - column
        )

    @contextmanager
    def each_tile(self, name: str, chunk: Value, column: Value | int) -> Iterator[tuple[Value, Value]]:
        """The first step of every tile of a chunk, and the address of its row."""
        k, start = self.k, chunk * STEPS
        count = k.smaller(self.a["pixels"] - start, STEPS)
        with k.loop((count + (k.lanes - 1)) // k.lanes) as tile:
            step = k.smaller(start + tile * k.lanes, self.a["pixels"] - k.lanes)
            address, offset = self.at(name, step, column)
            yield step, address + offset

    def factor(self, name: str, pixel: Value, n: Value | int, column: Value | int) -> Value:
        """B or C of state n: a number at this pixel, or one per channel."""
        if self.constant[name]:
            return self.k.load(self.matrices[name], self.channels * n + column)
        return self.k.broadcast(
            self.matrices[name], pixel * self.a[f"{name}_pixel"] + self.a[f"{name}_state"] * n
        )

    def pixel(self, t: Value) -> Value:
        return self.k.load_integer(self.path, t * 8)

    def fetch_ahead(self, t: Value, column: Value | int, names: tuple[str, ...]) -> None:
        """Bring step t of the next chunk to the cache: along a column of the image, the processor cannot guess it."""
        if not self.turned:
            pixel = self.k.load_integer(self.path_ahead, t * 8)
            for name in names:
                self.k.prefetch(*self.at(name, pixel, column))


class _Forward(_Kernel):
    """As many states as fit into half of the registers go along together; more of them go one part after the other through every
    chunk, whose steps and outputs then lie in scratch memory."""

    def write(self) -> str:
        k, a = self.k, self.a
        self.columns = range(0, self.row, 4 * k.lanes)
        self.part = k.registers // 2
        self.together = self.states <= self.part
        if not self.together:
            self.scratch = {name: k.scratch(STEPS * k.lanes) for name in ("s", "sx", "y")}
            self.states_at = k.scratch(self.states * k.lanes)
        with k.work(a["counter"], a["units"]) as unit:
            batch, rest = self.split(unit, a["blocks"])
            here, group = (rest % a["blocks"]) * self.row, rest // a["blocks"]
            self.y = self.addresses["y"] = a["y"] + self.of_y(batch, group, here)
            with k.loop(a["inner"]) as inner:
                self.unit(batch, group, inner, here)
                self.scan(k.is_zero(inner), here)
        return k.finish()

    def scan(self, first: Value, here: Value) -> None:
        """One direction; y begins with the first and is added to by the others."""
        k, a = self.k, self.a
        self.first = first
        self.h = {}
        if self.together:
            places = [(n, column) for n in range(self.states) for column in self.columns]
            self.h = {place: k.variable(k.real(0.0)) for place in places}
        else:
            with k.loop(self.states) as n:
                k.store(self.states_at, n * self.row, k.real(0.0))
        self.fixed = {column: (k.load(self.D, column), k.load(self.bias, column)) for column in self.columns}
        kept = k.variable(a["saved"] + self.sequence * self.chunks * (self.channels * self.states) + here)
        self.walk.write(self.path, k.smaller(a["pixels"], STEPS))
        x, delta = self.addresses["x"], self.addresses["delta"]
        with k.loop(self.chunks) as chunk:
            if self.turned:
                self.turn_in("x", x, chunk, 0)
                self.turn_in("delta", delta, chunk, 0)
                self.find("y", chunk, 0)
            with k.when(k.is_positive(a["save"])):
                self.store_states(kept.get())
                kept.set(kept.get() + self.channels * self.states)
            left = a["pixels"] - chunk * STEPS
            self.walk.write(self.path_ahead, k.smaller(left - STEPS, STEPS))
            count = k.smaller(left, STEPS)
            if self.together:
                self.all_states(count)
            else:
                self.states_by_parts(count)
            if self.turned:
                self.turn_out("y", self.y, chunk, 0)
                k.copy(self.tiles["y"], self.tiles["y"] + STEPS * self.row, k.lanes * k.lanes)
            self.walk.copy(self.path_ahead, self.path)
        self.store_states(a["last"] + self.state)

    def store_states(self, target: Value) -> None:
        k = self.k
        for (number, column), state in self.h.items():
            k.store(target, self.channels * number + column, state.get())
        if not self.together:
            with k.loop(self.states) as n:
                k.store(target, self.channels * n, k.load(self.states_at, n * self.row))

    def all_states(self, count: Value) -> None:
        k = self.k
        with k.loop(count) as t:
            pixel = self.pixel(t)
            for column in self.columns:
                step, drive, out = self.begin(t, pixel, column)
                for n in range(self.states):
                    decay = exp2(k, step * k.load(self.A, self.channels * n + column))
                    driven = drive * self.factor("B", pixel, n, column)
                    state = k.fma(decay, self.h[n, column].get(), driven)
                    out = k.fma(self.factor("C", pixel, n, column), state, out)
                    self.h[n, column].set(state)
                self.end(pixel, column, out)

    def states_by_parts(self, count: Value) -> None:
        k = self.k
        with k.loop(count) as t:
            for name, value in zip(self.scratch, self.begin(t, self.pixel(t), 0), strict=True):
                k.store(self.scratch[name], t * self.row, value, 64)
        with k.loop(self.states // self.part) as turn:
            self.some_states(count, turn * self.part, self.part)
        if self.states % self.part:
            self.some_states(count, k.integer(self.states // self.part * self.part), self.states % self.part)
        with k.loop(count) as t:
            self.end(self.pixel(t), 0, k.load(self.scratch["y"], t * self.row, 64))

    def some_states(self, count: Value, start: Value, number: int) -> None:
        k = self.k
        every = [start + i for i in range(number)]
        h = [k.variable(k.load(self.states_at, n * self.row)) for n in every]
        with k.loop(count) as t:
            pixel = self.pixel(t)
            step, drive, out = (k.load(self.scratch[name], t * self.row, 64) for name in ("s", "sx", "y"))
            for i, n in enumerate(every):
                decay = exp2(k, step * k.load(self.A, self.channels * n))
                h[i].set(k.fma(decay, h[i].get(), drive * self.factor("B", pixel, n, 0)))
                out = k.fma(self.factor("C", pixel, n, 0), h[i].get(), out)
            k.store(self.scratch["y"], t * self.row, out, 64)
        for i, n in enumerate(every):
            k.store(self.states_at, n * self.row, h[i].get())

    def begin(self, t: Value, pixel: Value, column: int) -> tuple[Value, Value, Value]:
        """The step s, s x, and what the skip gives to y."""
        k = self.k
        self.fetch_ahead(t, column, ("delta", "x"))
        skip, bias = self.fixed[column]
        value = k.load(*self.at("x", pixel, column))
        step = k.load(*self.at("delta", pixel, column)) + bias
        if self.with_softplus:
            step, _ = softplus(k, step)
        return step, step * value, skip * value

    def end(self, pixel: Value, column: int, out: Value) -> None:
        k, target = self.k, self.at("y", pixel, column)
        if not self.turned:
            out = out + k.where(self.first, k.real(0.0), k.load(*target))
        k.store(*target, out)


class _Backward(_Kernel):
    """Values of a chunk lie in scratch memory, one row of lanes per step: the step s and its derivative sigma, x, dy, s x, and
    per state the decay a and the faded state a h. Where all states are handled at once, a row is read where it is needed."""

    past_cache = False

    def write(self) -> str:
        k, a, states = self.k, self.a, self.states
        self.part = k.registers // 8  # more states at once would not fit into the registers
        self.together = min(self.part, states)
        self.alone = states <= self.part
        rows = {"s": 1, "sigma": 1, "a": self.together, "ah": self.together, "B": states, "C": states}
        if not self.alone:
            rows |= {"x": 1, "dy": 1, "sx": 1, "gB": 1, "gA": 1}
        self.scratch = {name: k.scratch(STEPS * k.lanes * number) for name, number in rows.items()}
        self.sums = k.scratch(STEPS * states + k.lanes)
        self.carries = k.scratch(LARGEST_SLICE * states * k.lanes)
        slices = a["blocks"] // a["slice"]
        with k.work(a["counter"], a["units"]) as unit:
            batch, rest = self.split(unit, slices)
            part, group = rest % slices, rest // slices
            here = part * a["slice"] * self.row
            start = self.of_y(batch, group, here)
            self.addresses |= {"y": a["dy"] + start, "dx": a["dx"] + start}
            with k.loop(a["inner"]) as inner:
                self.unit(batch, group, inner, here)
                direction = group * a["inner"] + inner
                self.memory = dict(self.addresses)
                self.vector = self.sequence * self.channels + here
                # dB and dC are (slices, batch, P, K, N): a unit writes the N numbers of a pixel next to each other
                size, batches = 4 * self.states, a["units"] // slices // a["outer"]
                self.pixel_size = a["inner"] * a["outer"] * size
                self.run = (part * batches + batch) * a["pixels"] * self.pixel_size + direction * size
                self.scan(k.is_zero(inner), here)
        return k.finish()

    def scan(self, first: Value, here: Value) -> None:
        k, a = self.k, self.a
        with k.loop(a["slice"]) as block, k.loop(self.states) as n:
            carry = k.load(a["dlast"] + self.state, self.channels * n + block * self.row)
            k.store(self.carries, (block * self.states + n) * self.row, carry)
        with k.loop(self.chunks, backwards=True) as chunk:
            self.count = k.smaller(a["pixels"] - chunk * STEPS, STEPS)
            self.walk.seek(chunk * STEPS)
            self.walk.write(self.path, self.count)
            with k.when(k.is_positive(chunk)):
                self.walk.seek((chunk - 1) * STEPS)
                self.walk.write(self.path_ahead, k.integer(STEPS))
            self.kept = (
                a["saved"] + (self.sequence * self.chunks + chunk) * (self.channels * self.states) + here
            )
            with k.loop(a["slice"]) as block:
                self.block(block, first, chunk)
            for name in "BC":
                if not self.constant[name]:
                    self.reduce(name)

    def block(self, block: Value, first: Value, chunk: Value) -> None:
        """One block of channels over one chunk."""
        k, a = self.k, self.a
        self.number, self.column, self.first_block, self.first = (
            block,
            block * self.row,
            k.is_zero(block),
            first,
        )
        memory = {name: address + self.inside(name, self.column) for name, address in self.memory.items()}
        if self.turned:
            for name in ("x", "delta", "y"):
                self.turn_in(name, memory[name], chunk, self.column)
            for name in ("dx", "ddelta"):
                self.find(name, chunk, self.column)
        self.shift, self.skip = k.load(self.bias, self.column), k.load(self.D, self.column)
        self.dD, self.dbias = k.variable(k.real(0.0)), k.variable(k.real(0.0))
        if self.alone:
            self.sweep(k.integer(0), self.states)
        else:
            with k.loop(self.count) as t:
                step, value = self.begin(t)
                grad = k.load(*self.at("y", self.pixel(t), self.column))
                zero = k.real(0.0)
                for name, row in (
                    ("x", value),
                    ("dy", grad),
                    ("sx", step * value),
                    ("gB", zero),
                    ("gA", zero),
                ):
                    self.put(name, t, row)
            with k.loop(self.states // self.part) as turn:
                self.sweep(turn * self.part, self.part)
            if self.states % self.part:
                self.sweep(k.integer(self.states // self.part * self.part), self.states % self.part)
            with k.loop(self.count) as t:
                self.end(t, *(self.get(name, t) for name in ("s", "x", "dy", "gB", "gA")))
        if self.turned:
            for name in ("dx", "ddelta"):
                self.turn_out(name, memory[name], chunk, self.column)
            self.addresses = dict(self.memory)
        add(k, a["dD"] + self.vector, self.column, self.dD.get())
        add(k, a["dbias"] + self.vector, self.column, self.dbias.get())

    def sweep(self, start: Value, number: int) -> None:
        """`number` states from `start` on: computed again to the end of the chunk, their gradients back to its start."""
        k = self.k
        every = [start + i for i in range(number)]
        powers = [k.load(self.A, self.channels * n + self.column) for n in every]
        h = [k.variable(k.load(self.kept, self.channels * n + self.column)) for n in every]
        with k.loop(self.count) as t:
            if self.alone:
                step, value = self.begin(t)
                drive = step * value
            else:
                step, drive = self.get("s", t), self.get("sx", t)
            for i, n in enumerate(every):
                decay = exp2(k, step * powers[i])
                faded = decay * h[i].get()
                self.put("a", t, decay, i)
                self.put("ah", t, faded, i)
                h[i].set(k.fma(drive, self.factor("B", self.pixel(t), n, self.column), faded))
        g = [k.variable(k.load(self.carries, (self.number * self.states + n) * self.row)) for n in every]
        kinds = ["A", *(name for name in "BC" if self.constant[name])]
        totals = {name: [k.variable(k.real(0.0)) for _ in every] for name in kinds}
        with k.loop(self.count, backwards=True) as t:
            self.step_back(t, every, powers, g, totals)
        for i, n in enumerate(every):
            k.store(self.carries, (self.number * self.states + n) * self.row, g[i].get())
            for name in kinds:
                add(
                    k, self.a[f"d{name}"] + self.state, self.channels * n + self.column, totals[name][i].get()
                )

    def step_back(
        self,
        t: Value,
        every: list[Value],
        powers: list[Value],
        g: list[Variable],
        totals: dict[str, list[Variable]],
    ) -> None:
        k, pixel, step = self.k, self.pixel(t), self.get("s", t)
        if self.alone:
            value = k.load(*self.at("x", pixel, self.column))
            grad = k.load(*self.at("y", pixel, self.column))
            drive, through_B, through_A = step * value, k.real(0.0), k.real(0.0)
        else:
            drive, grad, through_B, through_A = (self.get(name, t) for name in ("sx", "dy", "gB", "gA"))
        for i, n in enumerate(every):
            b, c = (self.factor(name, pixel, n, self.column) for name in "BC")
            decay, faded = self.get("a", t, i), self.get("ah", t, i)
            now = k.fma(c, grad, g[i].get())
            g[i].set(now * decay)
            through_B = k.fma(now, b, through_B)
            through = now * faded
            through_A = k.fma(through, powers[i], through_A)
            totals["A"][i].set(k.fma(through, step, totals["A"][i].get()))
            state = k.fma(drive, b, faded)
            for name, left, right in (("B", now, drive), ("C", grad, state)):
                if name in totals:
                    totals[name][i].set(k.fma(left, right, totals[name][i].get()))
                else:
                    place = (t * self.states + n) * self.row
                    before = k.where(self.first_block, k.real(0.0), k.load(self.scratch[name], place, 64))
                    k.store(self.scratch[name], place, k.fma(left, right, before), 64)
        if self.alone:
            self.end(t, step, value, grad, through_B, through_A)
        else:
            self.put("gB", t, through_B)
            self.put("gA", t, through_A)

    def begin(self, t: Value) -> tuple[Value, Value]:
        """The step at t, kept with its derivative, and x."""
        k, pixel = self.k, self.pixel(t)
        step = k.load(*self.at("delta", pixel, self.column)) + self.shift
        if self.with_softplus:
            raw = step
            step, tail = softplus(k, raw)
            self.put("sigma", t, logistic(k, raw, tail))
        self.put("s", t, step)
        self.fetch_ahead(t, self.column, ("delta", "x", "y", "dx", *([] if self.past_cache else ["ddelta"])))
        return step, k.load(*self.at("x", pixel, self.column))

    def end(
        self, t: Value, step: Value, value: Value, grad: Value, through_B: Value, through_A: Value
    ) -> None:
        """The gradients of x, delta, D and bias at t, from the sums over the states: of g B, and of g a h A in binary units."""
        k, pixel = self.k, self.pixel(t)
        change = k.fma(value, through_B, through_A * (1 / LOG2E))
        if self.with_softplus:
            change = change * self.get("sigma", t)
        k.store(
            *self.at("ddelta", pixel, self.column),
            change,
            self.row if self.past_cache else 4,
            self.past_cache,
        )
        self.dbias.set(self.dbias.get() + change)
        self.dD.set(k.fma(grad, value, self.dD.get()))
        target = self.at("dx", pixel, self.column)
        total = k.fma(step, through_B, self.skip * grad)
        if not self.turned:
            total = total + k.where(self.first, k.real(0.0), k.load(*target))
        k.store(*target, total)

    def reduce(self, name: str) -> None:
        """Sum the lanes of all steps and states of the chunk, and write the N sums of every pixel."""
        k, rows = self.k, self.scratch[name]
        with k.loop((self.count * self.states + (k.lanes - 1)) // k.lanes) as group:
            vectors = [k.load(rows + group * (self.row * k.lanes), i * self.row, 64) for i in range(k.lanes)]
            k.store(self.sums, group * self.row, across(k, vectors))
        size = 4 * self.states
        with k.loop(self.count) as t:
            target = self.a[f"d{name}"] + self.run + self.pixel(t) * self.pixel_size
            k.copy(target, self.sums + t * size, self.states)

    def put(self, name: str, t: Value, value: Value, i: int = 0) -> None:
        rows = self.together if name in ("a", "ah") else 1
        self.k.store(self.scratch[name], t * (self.row * rows) + i * self.row, value, 64)

    def get(self, name: str, t: Value, i: int = 0) -> Value:
        rows = self.together if name in ("a", "ah") else 1
        return self.k.load(self.scratch[name], t * (self.row * rows) + i * self.row, 64)


class Walk:
    """Follows a walk (`anban.ssm.orders.Walk`) and writes the pixels of a chunk to a list."""

    def __init__(self, k: Emitter, walk: Value):
        self.k = k
        self.start, self.step, self.count, self.jump = (k.load_integer(walk, 8 * i) for i in range(4))
        self.turn = self.jump - self.step * (self.count - 1)  # from the last pixel of a line to the next line
        self.place, self.left = k.variable(self.start), k.variable(self.count)

    def seek(self, position: Value) -> None:
        """Go on from there."""
        line, place = position // self.count, position % self.count
        self.place.set(self.start + line * self.jump + place * self.step)
        self.left.set(self.count - place)

    def write(self, path: Value, count: Value) -> None:
        k = self.k
        with k.loop(count) as t:
            k.store_integer(path, t * 8, self.place.get())
            left = self.left.get() - 1
            ended = k.is_zero(left)
            self.left.set(k.where(ended, self.count, left))
            self.place.set(self.place.get() + k.where(ended, self.turn, self.step))

    def copy(self, source: Value, target: Value) -> None:
        with self.k.loop(STEPS) as t:
            self.k.store_integer(target, t * 8, self.k.load_integer(source, t * 8))


def add(k: Emitter, address: Value, offset: Value, value: Value) -> None:
    """Sums of chunks are added up, not single steps: so a sum over a long sequence keeps its digits."""
    k.store(address, offset, k.load(address, offset) + value)


def across(k: Emitter, vectors: list[Value]) -> Value:
    """The vector whose lane i is the sum of the lanes of vectors[i]: a tree of shuffles, half as many vectors at every level."""
    distance = 1
    while len(vectors) > 1:
        from_second = [k.lanes - distance if i & distance else 0 for i in range(k.lanes)]
        low = [i + shift for i, shift in enumerate(from_second)]
        high = [i + distance + shift for i, shift in enumerate(from_second)]
        vectors = [
            k.shuffle(one, two, low) + k.shuffle(one, two, high)
            for one, two in zip(vectors[::2], vectors[1::2], strict=True)
        ]
        distance *= 2
    return vectors[0]
