"""Stop long work between two steps instead of in the middle of one."""

import signal
import threading
import time

from Libraries.Utils import get_logger

logger = get_logger("Interrupt")

ONE_REQUEST = 2.0  # s; a launcher passes on what the terminal has already sent to all processes


class DeferredInterrupt:
    """Turn the first Ctrl-C, stop button or SIGTERM into a request; a second one interrupts at once.

    Stopping in the middle of an optimiser step would leave half of the weights updated. Signals within two
    seconds of the first are the same request.
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.requested, self._since, self._previous = False, 0.0, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # handlers can only be set there
            self._previous = {s: signal.signal(s, self._request) for s in self.signals}
        return self

    def __exit__(self, *_):
        for s, handler in self._previous.items():
            signal.signal(s, handler)

    def _request(self, signum, frame):
        if self.requested:
            if time.monotonic() - self._since > ONE_REQUEST:
                raise KeyboardInterrupt
            return
        self.requested, self._since = True, time.monotonic()
        logger.info("stopping after this step; interrupt again to stop at once, without saving")
