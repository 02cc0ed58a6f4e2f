"""Stop long work between two steps instead of in the middle of one."""

import signal
import threading

from Libraries.Utils import get_logger

logger = get_logger("Interrupt")


class DeferredInterrupt:
    """Turn the first Ctrl-C, stop button or SIGTERM into a request; a second Ctrl-C interrupts at once.

    Stopping in the middle of an optimiser step would leave half of the weights updated.
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.requested, self._previous = False, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # handlers can only be set there
            self._previous = {s: signal.signal(s, self._request) for s in self.signals}
        return self

    def __exit__(self, *_):
        for s, handler in self._previous.items():
            signal.signal(s, handler)

    def _request(self, signum, frame):
        if self.requested and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        logger.info("stopping after this step; interrupt again to stop at once, without saving")
