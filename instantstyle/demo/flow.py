"""Work that tells how far it is, as an iterator that can be closed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TypeVar

from instantstyle.demo.studio import Step, Tell


Result = TypeVar("Result")


def follow(work: Callable[[Tell, threading.Event], Result]) -> Generator[Step | Result, None, None]:
    """Run work in a thread of its own; give its steps while it runs, and at last its result.

    Args:
        work: Is called with what it tells its steps, and with an event that is set when nobody listens any more.

    Raises:
        Exception: What the work raised.
    """
    told: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
    stop, future = threading.Event(), Future[Result]()

    def run() -> None:
        try:
            future.set_result(work(told.put, stop))
        except BaseException as error:
            future.set_exception(error)
        finally:
            told.put(None)

    threading.Thread(target=run, daemon=True).start()
    try:
        while (step := told.get()) is not None:
            yield step
        yield future.result()
    finally:
        # Not waited for: a step can take long, and whoever closes this would be held up.
        stop.set()
