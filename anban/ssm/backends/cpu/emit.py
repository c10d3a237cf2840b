"""A small language for vector kernels: Python operators that write LLVM instructions.

A kernel is a Python function that runs once, while its code is being written; Python's own loops and branches unroll and
specialise, `loop` and `when` write loops and branches of the kernel. Values are floats in `lanes` lanes, or 64-bit integers.

    k = Emitter(lanes=16)
    with k.loop(k.argument(0)) as i:
        k.store(k.argument(1), i * 64, 2.0 * k.load(k.argument(2), i * 64))
    k.finish()                                  # the text of a module for LLVM

Why not Numba: states must stay in vector registers for every N, which needs generated code, and generated code cannot be
cached by Numba; LLVM's own binding (llvmlite, which Numba is built on) compiles it in a fraction of the time and leaves the
choice of instructions to us.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

I1, I32, I64, F32 = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.FloatType()
POINTER = ir.IntType(8).as_pointer()


class Value:
    """A vector of floats or an integer, with the operators that work on it. Numbers are taken for constants."""

    def __init__(self, emitter: Emitter, raw: ir.Value):
        self.emitter, self.raw = emitter, raw

    @property
    def is_integer(self) -> bool:
        return isinstance(self.raw.type, ir.IntType)

    def _with(self, other: Value | float, whole: str, real: str, swapped: bool = False) -> Value:
        other = self.emitter.like(self, other)
        left, right = (other, self) if swapped else (self, other)
        builder = self.emitter.builder
        if self.is_integer:
            return Value(self.emitter, getattr(builder, whole)(left.raw, right.raw))
        return Value(self.emitter, getattr(builder, real)(left.raw, right.raw))

    def __add__(self, other: Value | float) -> Value:
        return self._with(other, "add", "fadd")

    def __radd__(self, other: float) -> Value:
        return self._with(other, "add", "fadd")

    def __sub__(self, other: Value | float) -> Value:
        return self._with(other, "sub", "fsub")

    def __rsub__(self, other: float) -> Value:
        return self._with(other, "sub", "fsub", swapped=True)

    def __mul__(self, other: Value | float) -> Value:
        return self._with(other, "mul", "fmul")

    def __rmul__(self, other: float) -> Value:
        return self._with(other, "mul", "fmul")

    def __truediv__(self, other: Value | float) -> Value:
        return self._with(other, "sdiv", "fdiv")

    def __rtruediv__(self, other: float) -> Value:
        return self._with(other, "sdiv", "fdiv", swapped=True)

    def __floordiv__(self, other: Value | int) -> Value:
        return self._with(other, "udiv", "fdiv")

    def __mod__(self, other: Value | int) -> Value:
        return self._with(other, "urem", "frem")


class Variable:
    """A value that changes in loops; LLVM keeps it in a register."""

    def __init__(self, emitter: Emitter, first: Value):
        self.emitter = emitter
        with emitter.builder.goto_entry_block():
            self.slot = emitter.builder.alloca(first.raw.type)
        self.set(first)

    def get(self) -> Value:
        return Value(self.emitter, self.emitter.builder.load(self.slot))

    def set(self, value: Value) -> None:
        self.emitter.builder.store(value.raw, self.slot)


class Emitter:
    """Writes one function `void kernel(i64 *arguments)`.

    Args:
        lanes: floats in a vector.
        avx512: whether it has AVX-512's own instructions for exponents.
    """

    def __init__(self, lanes: int, *, avx512: bool = False):
        self.lanes, self.avx512 = lanes, avx512
        self.registers = 32 if avx512 else 16
        self.vector = ir.VectorType(F32, lanes)
        self.integers = ir.VectorType(I32, lanes)
        self.module = ir.Module("kernel")
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [POINTER]), "kernel")
        entry = self.function.append_basic_block("entry")
        self.builder = ir.IRBuilder(entry)
        self._arguments = self.builder.bitcast(self.function.args[0], I64.as_pointer())

    # -- constants and arguments

    def integer(self, number: int) -> Value:
        return Value(self, ir.Constant(I64, number))

    def real(self, number: float) -> Value:
        """The number in every lane."""
        return Value(self, ir.Constant(self.vector, [ir.Constant(F32, number)] * self.lanes))

    def like(self, model: Value, other: Value | float) -> Value:
        if isinstance(other, Value):
            return other
        return self.integer(int(other)) if model.is_integer else self.real(float(other))

    def argument(self, index: int) -> Value:
        """The 64-bit integer at that place of the arguments: a number, or an address."""
        place = self.builder.gep(self._arguments, [ir.Constant(I64, index)])
        return Value(self, self.builder.load(place))

    def variable(self, first: Value) -> Variable:
        return Variable(self, first)

    def scratch(self, floats: int) -> Value:
        """The address of memory of its own for every thread, aligned for vectors (it lies on the stack)."""
        with self.builder.goto_entry_block():
            memory = self.builder.alloca(ir.ArrayType(F32, floats))
            memory.align = 64
            address = self.builder.ptrtoint(memory, I64)
        return Value(self, address)

    # -- memory; offsets are in bytes

    def _at(self, address: Value, offset: Value | int, kind: ir.Type) -> ir.Value:
        base = self.builder.inttoptr(address.raw, POINTER)
        place = self.builder.gep(base, [self.like(address, offset).raw])
        return self.builder.bitcast(place, kind.as_pointer())

    def load(self, address: Value, offset: Value | int = 0, align: int = 4) -> Value:
        """`lanes` floats in a row."""
        return Value(self, self.builder.load(self._at(address, offset, self.vector), align=align))

    def store(
        self, address: Value, offset: Value | int, value: Value, align: int = 4, past_cache: bool = False
    ) -> None:
        """`past_cache` (whole aligned vectors only): what is not read again soon need not be read before it is written either."""
        store = self.builder.store(value.raw, self._at(address, offset, self.vector), align=align)
        if past_cache:
            store.set_metadata("nontemporal", self.module.add_metadata([ir.Constant(I32, 1)]))

    def broadcast(self, address: Value, offset: Value | int = 0) -> Value:
        """One float in every lane."""
        number = self.builder.load(self._at(address, offset, F32), align=4)
        one = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), number, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [ir.Constant(I32, 0)] * self.lanes)
        return Value(self, self.builder.shuffle_vector(one, ir.Constant(self.vector, ir.Undefined), zeros))

    def load_integer(self, address: Value, offset: Value | int = 0) -> Value:
        return Value(self, self.builder.load(self._at(address, offset, I64), align=8))

    def store_integer(self, address: Value, offset: Value | int, value: Value) -> None:
        self.builder.store(value.raw, self._at(address, offset, I64), align=8)

    def copy(self, target: Value, source: Value, floats: int) -> None:
        """So many floats from one place to another."""
        vectors = floats // self.lanes
        for i in range(vectors):
            self.store(target, 4 * self.lanes * i, self.load(source, 4 * self.lanes * i))
        for i in range(vectors * self.lanes, floats):
            number = self.builder.load(self._at(source, 4 * i, F32), align=4)
            self.builder.store(number, self._at(target, 4 * i, F32), align=4)

    def take(self, address: Value) -> Value:
        """The next number of a counter that all threads share."""
        place = self.builder.inttoptr(address.raw, I64.as_pointer())
        return Value(self, self.builder.atomic_rmw("add", place, ir.Constant(I64, 1), "monotonic"))

    def prefetch(self, address: Value, offset: Value | int) -> None:
        kind = ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32])
        hint = self._declared("llvm.prefetch.p0", kind)
        self.builder.call(
            hint, [self._at(address, offset, ir.IntType(8)), *(ir.Constant(I32, n) for n in (0, 3, 1))]
        )

    # -- arithmetic of vectors

    def fma(self, a: Value | float, b: Value | float, c: Value | float) -> Value:
        """a * b + c, in one instruction where there is one."""
        model = next(v for v in (a, b, c) if isinstance(v, Value))
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        function = self._declared(f"llvm.fmuladd.v{self.lanes}f32", kind)
        return Value(self, self.builder.call(function, [self.like(model, v).raw for v in (a, b, c)]))

    def maximum(self, a: Value, b: Value | float) -> Value:
        """The larger; NaN in `a` stays."""
        other = self.like(a, b)
        return Value(
            self, self.builder.select(self.builder.fcmp_ordered(">", other.raw, a.raw), other.raw, a.raw)
        )

    def minimum(self, a: Value, b: Value | float) -> Value:
        """The smaller; NaN in `a` stays."""
        other = self.like(a, b)
        return Value(
            self, self.builder.select(self.builder.fcmp_ordered("<", other.raw, a.raw), other.raw, a.raw)
        )

    def absolute(self, a: Value) -> Value:
        kind = ir.FunctionType(self.vector, [self.vector])
        return Value(self, self.builder.call(self._declared(f"llvm.fabs.v{self.lanes}f32", kind), [a.raw]))

    def select_negative(self, a: Value, if_negative: Value, otherwise: Value) -> Value:
        zero = self.real(0.0)
        return Value(
            self,
            self.builder.select(
                self.builder.fcmp_ordered("<", a.raw, zero.raw), if_negative.raw, otherwise.raw
            ),
        )

    def bits(self, a: Value) -> ir.Value:
        return self.builder.bitcast(a.raw, self.integers)

    def unbits(self, a: ir.Value) -> Value:
        return Value(self, self.builder.bitcast(a, self.vector))

    def shuffle(self, a: Value, b: Value, places: list[int]) -> Value:
        mask = ir.Constant(ir.VectorType(I32, len(places)), [ir.Constant(I32, p) for p in places])
        return Value(self, self.builder.shuffle_vector(a.raw, b.raw, mask))

    def intrinsic(self, name: str, result: ir.Type, *operands: Any) -> ir.Value:
        kind = ir.FunctionType(result, [o.type for o in operands])
        return self.builder.call(self._declared(name, kind), operands)

    def lookup(self, table: Sequence[float], index: Value) -> Value:
        """table[i], 16 entries, where i stands in the lowest four bits of every lane (AVX-512)."""
        entries = ir.Constant(self.vector, [ir.Constant(F32, number) for number in table])
        return Value(
            self, self.intrinsic("llvm.x86.avx512.permvar.sf.512", self.vector, entries, self.bits(index))
        )

    def scaled(self, a: Value, power: Value) -> Value:
        """a * 2^floor(power), right where the result is 0, subnormal or infinite, too (AVX-512)."""
        return self._avx512("scalef", a.raw, power.raw)

    def _avx512(self, name: str, *operands: ir.Value) -> Value:
        every_lane, usual_rounding = ir.Constant(ir.IntType(self.lanes), -1), ir.Constant(I32, 4)
        raw = self.intrinsic(
            f"llvm.x86.avx512.mask.{name}.ps.512",
            self.vector,
            *operands,
            self.real(0.0).raw,
            every_lane,
            usual_rounding,
        )
        return Value(self, raw)

    def _declared(self, name: str, kind: ir.FunctionType) -> ir.Function:
        known = self.module.globals.get(name)
        return known if known is not None else ir.Function(self.module, kind, name)

    # -- control

    @contextmanager
    def loop(self, count: Value | int, *, backwards: bool = False) -> Iterator[Value]:
        """The body for 0, 1, ..., count - 1 (or the other way round)."""
        limit = count if isinstance(count, Value) else self.integer(count)
        index = self.variable(limit - 1 if backwards else self.integer(0))
        head, body, end = (self.function.append_basic_block(n) for n in ("head", "body", "end"))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        now = index.get()
        going = self.builder.icmp_signed(
            ">=" if backwards else "<", now.raw, self.integer(0).raw if backwards else limit.raw
        )
        self.builder.cbranch(going, body, end)
        self.builder.position_at_end(body)
        yield now
        index.set(now - 1 if backwards else now + 1)
        self.builder.branch(head)
        self.builder.position_at_end(end)

    @contextmanager
    def work(self, counter: Value, count: Value) -> Iterator[Value]:
        """The body for every number below `count` that this thread takes from the shared counter."""
        head, body, end = (self.function.append_basic_block(n) for n in ("head", "body", "end"))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        unit = self.take(counter)
        self.builder.cbranch(self.builder.icmp_signed("<", unit.raw, count.raw), body, end)
        self.builder.position_at_end(body)
        yield unit
        self.builder.branch(head)
        self.builder.position_at_end(end)

    def smaller(self, a: Value, b: Value | int) -> Value:
        """The smaller of two integers."""
        other = self.like(a, b)
        return Value(
            self, self.builder.select(self.builder.icmp_signed("<", a.raw, other.raw), a.raw, other.raw)
        )

    def is_zero(self, a: Value) -> Value:
        return Value(self, self.builder.icmp_signed("==", a.raw, self.integer(0).raw))

    def is_positive(self, a: Value) -> Value:
        return Value(self, self.builder.icmp_signed(">", a.raw, self.integer(0).raw))

    def where(self, condition: Value, yes: Value, no: Value) -> Value:
        return Value(self, self.builder.select(condition.raw, yes.raw, no.raw))

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """The body if the condition holds."""
        with self.builder.if_then(condition.raw):
            yield

    def finish(self) -> str:
        """End the function; the module's text."""
        self.builder.fence(
            "seq_cst"
        )  # stores past the cache are in place before others are told that the work is done
        self.builder.ret_void()
        return str(self.module)
