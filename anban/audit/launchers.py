"""Where work is done: in this process, in processes of this machine, or on a Ray cluster.

A launcher takes chunks of tasks as a stream and gives back what came of them, in any order; it never holds more than a few
chunks per worker.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, Protocol

from anban.audit.extras import extra
from anban.audit.look import Plan

#: Chunks under way per worker.
_AHEAD = 2

_plan: Plan | None = None


class Work(NamedTuple):
    """What is done with a task.

    Attributes:
        do: a function of a module, so that every process finds it.
        died: what is said of a task on which the process died.
    """

    do: Callable[[Plan, Any], Any]
    died: Callable[[Any], Any]


def do_all(plan: Plan, work: Work, tasks: list[Any]) -> list[Any]:
    """What comes of the tasks, in their order."""
    return [work.do(plan, task) for task in tasks]


class Launcher(Protocol):
    def __call__(
        self, plan: Plan, work: Work, chunks: Iterator[list[Any]], workers: int, memory: int
    ) -> Iterator[list[Any]]: ...


# Processes ------------------------------------------------------------------------------------------------------


def local(
    plan: Plan, work: Work, chunks: Iterator[list[Any]], workers: int, memory: int
) -> Iterator[list[Any]]:
    """On this machine.

    A task that kills its process (a fault in a decoder, no more memory) is told as such; the others of its chunk are
    done again.

    Args:
        workers: processes; 0 does the work in this one.
        memory: bytes of data that each process may hold; a task that wants more fails alone.
    """
    if workers == 0:
        for each in chunks:
            yield do_all(plan, work, each)
        return
    chunk: list[Any] | None = next(chunks, None)
    while chunk is not None:  # another pool where one has broken
        with _pool(plan, workers, memory) as pool:
            waiting: dict[Future[list[Any]], list[Any]] = {}
            broken: list[list[Any]] = []
            while not broken and (chunk is not None or waiting):
                try:
                    while chunk is not None and len(waiting) < _AHEAD * workers:
                        waiting[pool.submit(_in_worker, work, chunk)] = chunk
                        chunk = next(chunks, None)
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        yield future.result()
                        del waiting[future]
                except BrokenProcessPool:
                    broken = list(waiting.values())  # nobody knows whose task it was
        for each in broken:
            yield _one_by_one(plan, work, each, memory)


def _one_by_one(plan: Plan, work: Work, tasks: list[Any], memory: int) -> list[Any]:
    """Every task with a process of its own to lose."""
    done: list[Any] = []
    while len(done) < len(tasks):
        with _pool(plan, 1, memory) as pool:
            try:
                for task in tasks[len(done) :]:
                    done += pool.submit(_in_worker, work, [task]).result()
            except BrokenProcessPool:
                done.append(work.died(tasks[len(done)]))
    return done


@contextlib.contextmanager
def _pool(plan: Plan, workers: int, memory: int) -> Iterator[ProcessPoolExecutor]:
    # Not forked: a copy of a process that has threads (those of a decoder, say) may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(plan, memory))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(plan: Plan, memory: int) -> None:
    global _plan
    _plan = plan
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        import resource
    except ImportError:  # there is none on Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _end_with_parent() -> None:
    """A parent that was killed has told its workers nothing: they would wait for its next word for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _in_worker(work: Work, tasks: list[Any]) -> list[Any]:
    assert _plan is not None
    return do_all(_plan, work, tasks)


# Ray ------------------------------------------------------------------------------------------------------------


def ray(
    plan: Plan, work: Work, chunks: Iterator[list[Any]], workers: int, memory: int
) -> Iterator[list[Any]]:
    """On a Ray cluster whose machines all see the tree under the same path.

    Joins the cluster that RAY_ADDRESS names; without one it starts a Ray of `workers` workers on this machine.

    Raises:
        InputError: ray is not installed.
    """
    ray = extra("ray", "ray")
    own = not ray.is_initialized()
    if own:
        joined = bool(os.environ.get("RAY_ADDRESS"))
        ray.init(num_cpus=None if joined else max(1, workers), include_dashboard=False, log_to_driver=False)
        workers = int(ray.cluster_resources().get("CPU", 1)) if joined else workers
    try:
        shared = ray.put(plan)
        remote = ray.remote(max_retries=1)(do_all)
        waiting: dict[Any, list[Any]] = {}
        while True:
            for chunk in itertools.islice(chunks, _AHEAD * max(1, workers) - len(waiting)):
                waiting[remote.remote(shared, work, chunk)] = chunk
            if not waiting:
                return
            for task in ray.wait(list(waiting), num_returns=1)[0]:
                chunk = waiting.pop(task)
                try:
                    yield ray.get(task)
                except ray.exceptions.WorkerCrashedError:
                    yield _one_by_one(plan, work, chunk, memory)
    finally:
        if own:
            ray.shutdown()


LAUNCHERS: dict[str, Launcher] = {"local": local, "ray": ray}
