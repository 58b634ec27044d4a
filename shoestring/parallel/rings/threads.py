"""A thread that does what it is given, one after the other, and never holds up the end of the process
(source: ours).

gloo gives no sign to who waits for a message of which a part has come when its sender dies: that wait ends
with its time-out only. So threads here may be stuck. They are daemons, and what was promised of their work
can be failed from outside.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

Task = tuple[Callable[..., Any], tuple[Any, ...], "Future[Any]"]


class Worker:
    """One daemon thread, started when first needed.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._promised: list[Future[Any]] = []

    @property
    def busy(self) -> bool:
        """Whether something is under way or waits."""
        with self._lock:
            self._promised = [future for future in self._promised if not future.done()]
            return bool(self._promised)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Do this after what was submitted before."""
        future: Future[Any] = Future()
        with self._lock:
            self._promised = [one for one in self._promised if not one.done()]
            self._promised.append(future)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        self._tasks.put((function, args, future))
        return future

    def fail(self, error: BaseException) -> None:
        """Everything promised and not done fails now, whatever the thread is at."""
        with self._lock:
            promised, self._promised = self._promised, []
        for future in promised:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)

    def close(self, patience_s: float | None) -> None:
        """End the thread and wait for that, so long at the most: one that is stuck touches no tensor any
        more."""
        self._tasks.put(None)
        if self._thread is not None:
            self._thread.join(patience_s)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            function, args, future = task
            try:
                result, error = function(*args), None
            except BaseException as problem:  # noqa: BLE001  goes to whoever waits
                result, error = None, problem
            with contextlib.suppress(InvalidStateError):  # failed from outside meanwhile
                future.set_exception(error) if error is not None else future.set_result(result)
