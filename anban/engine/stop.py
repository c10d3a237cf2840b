"""Being asked to stop: Ctrl-C, or the signals a cluster sends before it takes a machine away."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

# SIGUSR1 and SIGUSR2 are what schedulers are told to send before a time limit (sbatch --signal).
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)


class Interrupted(Exception):
    """Someone asked the run to stop; everything up to the last finished step is in `last.pt`."""


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """A function that says whether one of SIGNALS came; a second Ctrl-C stops at once.

    Raises:
        Interrupted: the same SIGTERM ended a process that loads data before this one could stop by itself.
    """
    asked = threading.Event()

    def ask(number: int, _: Any) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()  # nothing more: a handler may run in the middle of any call, the log's included

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    kept = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield asked.is_set
    except RuntimeError as error:
        if asked.is_set() and "DataLoader worker" in str(error):
            raise Interrupted("stopped while data were loaded") from error
        raise
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
