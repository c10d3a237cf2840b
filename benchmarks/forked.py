"""Processes that are forked from a warm one: everything is imported, nothing computed, so a start costs no seconds."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence


class Forked:
    """A process that does one thing, says nothing and ends."""

    def __init__(self, work: Callable[[], None]):
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _work(work)

    def poll(self) -> int | None:
        """The exit status, negative after a signal; None while it lives."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, limit: float = 600) -> int:
        """The exit status, as soon as it has ended; after `limit` seconds it is killed."""
        until = time.monotonic() + limit
        while self.poll() is None:
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.002)
        assert self.returncode is not None
        return self.returncode


def command(words: Sequence[str]) -> Forked:
    """`anban WORDS`."""
    from anban.cli.main import main

    def work() -> None:
        sys.argv = ["anban", *words]
        main()

    return Forked(work)


def _work(work: Callable[[], None]) -> None:
    status = 1
    try:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        os._exit(status)
