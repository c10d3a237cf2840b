"""From a kernel's text to an address: LLVM compiles it for this processor, once per machine.

Compiled kernels are kept in `$ANBAN_CACHE/kernels` (default `$XDG_CACHE_HOME/anban/kernels`, that is `~/.cache/anban/kernels`),
named by everything that went into them. Losing the folder costs a fraction of a second.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

from anban.errors import InputError

PROCESSOR = "ANBAN_CPU"
"""The environment variable that makes LLVM write code for another processor than this one, such as "haswell"."""

_alive: list[object] = []  # LLVM's engines own the code of their kernels
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):

    def _new_lock() -> None:
        global _lock
        _lock = threading.Lock()  # another thread may have held it when the process was copied

    os.register_at_fork(after_in_child=_new_lock)


class Target(NamedTuple):
    """What code is written for: LLVM's name of the processor, its features, floats in a vector register."""

    processor: str
    features: str
    lanes: int
    avx512: bool


@functools.cache
def target() -> Target:
    """This processor, or the one that `ANBAN_CPU` names."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    wish = os.environ.get(PROCESSOR)
    if wish:
        return _named(wish)
    features = llvm.get_host_cpu_features()
    avx512 = features.get("avx512f", False)
    lanes = 16 if avx512 else 8 if features.get("avx", False) else 4
    return Target(llvm.get_host_cpu_name(), features.flatten(), lanes, avx512)


def _named(processor: str) -> Target:
    wide = ("skylake-avx512", "znver4", "znver5", "x86-64-v4", "icelake-server", "sapphirerapids")
    middle = ("haswell", "broadwell", "skylake", "znver1", "znver2", "znver3", "x86-64-v3")
    narrow = ("x86-64", "x86-64-v2", "nehalem")
    if processor not in wide + middle + narrow:
        raise InputError(
            f"{PROCESSOR} names the processor {processor!r}",
            where=f"environment variable {PROCESSOR}",
            expected=", ".join(wide + middle + narrow),
            do="unset it to have code for this machine",
        )
    lanes = 16 if processor in wide else 8 if processor in middle else 4
    return Target(processor, "", lanes, processor in wide)


def folder() -> Path | None:
    """Where compiled kernels are kept; None for a user without a home."""
    named = os.environ.get("ANBAN_CACHE")
    if named:
        return Path(named) / "kernels"
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return caches / "anban" / "kernels"


def address(text: str) -> int:
    """The address of the kernel of that text, compiled now or earlier. The caller keeps it: each call loads the code anew."""
    with _lock:
        return _load(_object(text))


def _object(text: str) -> bytes:
    """The object file, from the cache or from LLVM."""
    where = folder()
    if where is None:
        return _compile(text)
    file = where / f"{_key(text)}.o"
    kept = _read(file)
    if kept is None:
        kept = _compile(text)
        _keep(file, kept)
    return kept


def _key(text: str) -> str:
    """Of the text itself: whatever changed in the code that wrote it, a kept kernel is the one that was asked for."""
    import llvmlite

    told = repr((text, target(), llvmlite.__version__, sys.platform))
    return hashlib.sha256(told.encode()).hexdigest()[:40]


def _compile(text: str) -> bytes:
    import llvmlite.binding as llvm

    goal = target()
    native = llvm.Target.from_default_triple()
    machine = native.create_target_machine(
        cpu=goal.processor, features=goal.features, opt=3, codemodel="jitdefault"
    )
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = native.triple, str(machine.target_data)
    module.verify()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    result: bytes = machine.emit_object(module)
    return result


def _load(code: bytes) -> int:
    import llvmlite.binding as llvm

    native = llvm.Target.from_default_triple()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), native.create_target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _alive.append(engine)
    found: int = engine.get_function_address("kernel")
    return found


def _read(file: Path) -> bytes | None:
    """A kept object file: whole, and in a folder that nobody else can write to."""
    try:
        status = file.parent.stat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
            return None
        content = file.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _keep(file: Path, code: bytes) -> None:
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as temporary:
            temporary.write(hashlib.sha256(code).digest() + code)
        os.replace(temporary.name, file)
    except OSError:
        return  # a folder that cannot be written to costs the next process a compilation, nothing else
