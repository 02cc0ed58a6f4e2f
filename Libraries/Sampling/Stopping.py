"""Stop samplings that others wait for, as those of a page in a browser: between two steps, by who asked."""

import contextlib
import threading
from collections.abc import Hashable, Iterator

from torch import Tensor

from Libraries.Sampling.Loop import Callback


class Stopped(Exception):
    """A sampling was stopped by who asked for it."""


class Stops:
    """The samplings that are going on, by who asked for them; any thread may stop them."""

    def __init__(self) -> None:
        self._going: dict[Hashable, set[threading.Event]] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def stoppable(self, who: Hashable) -> Iterator[Callback]:
        """Yield a callback for samplers and editors that raises `Stopped` at the step after `stop(who)`."""
        asked = threading.Event()
        with self._lock:
            self._going.setdefault(who, set()).add(asked)

        def stop_if_asked(number: int, t: int, x_t: Tensor, x0: Tensor) -> None:
            if asked.is_set():
                raise Stopped("stopped")

        try:
            yield stop_if_asked
        finally:
            with self._lock:
                self._going[who].discard(asked)
                if not self._going[who]:
                    del self._going[who]

    def stop(self, who: Hashable) -> None:
        """Stop all that `who` waits for; what begins later goes on."""
        with self._lock:
            for asked in self._going.get(who, ()):
                asked.set()
