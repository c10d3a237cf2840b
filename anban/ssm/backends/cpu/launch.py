"""Run a kernel on several threads, the very ones that torch uses.

A kernel takes units of work from a shared counter until none is left, so it can be started on any number of threads, and what
it computes does not depend on their number. On Linux it is handed to the OpenMP library that torch has already loaded: its
workers may still be spinning after torch's last operator, and a second pool would have to fight them for the cores. Elsewhere,
and in a process that was forked (where that library must not be entered again), threads of our own do it.
"""

from __future__ import annotations

import ctypes
import functools
import os
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

_forked = False
_threads: ThreadPoolExecutor | None = None


def _after_fork() -> None:
    global _forked, _threads
    _forked, _threads = True, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def run(kernel: int, arguments: Sequence[int], units: int) -> None:
    """Call `void kernel(i64 *arguments)` on as many threads as torch uses, at most one per unit.

    The first argument is the place of the counter's address and need not be set.
    """
    counter = array("q", [0])
    table = array("q", arguments)
    table[0] = counter.buffer_info()[0]
    place = table.buffer_info()[0]
    threads = min(torch.get_num_threads(), units)
    if threads == 1:
        _function(kernel)(place)
        return
    openmp = None if _forked else _openmp()
    if openmp is not None:
        openmp(kernel, place, threads, 0)
        return
    list(_pool().map(_function(kernel), [place] * threads))


@functools.cache
def _function(kernel: int) -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel)


@functools.cache
def _openmp() -> Any:
    """`GOMP_parallel` of the OpenMP library in torch's own folder, or None."""
    libraries = Path(torch.__file__).parent / "lib"
    for file in sorted([*libraries.glob("libgomp*.so*"), *libraries.glob("libiomp5*.so*")]):
        try:
            function = ctypes.CDLL(str(file), mode=os.RTLD_NOW | getattr(os, "RTLD_NOLOAD", 0)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None


def _pool() -> ThreadPoolExecutor:
    global _threads
    if _threads is None:
        _threads = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="anban-scan")
    return _threads
