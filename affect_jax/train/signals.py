"""SIGTERM and Ctrl-C as a request to stop behind the current update."""

import signal
import threading
from contextlib import contextmanager


class Interrupted(Exception):
    """The run stopped on request with everything saved; `signal` is the number of the signal that asked."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal = signal_number


class StopRequest:
    """Which signal has asked to stop: its number, or None."""

    signal: int | None = None


@contextmanager
def stop_request():
    """Note the first SIGTERM or SIGINT in the yielded StopRequest; a second one acts as without us."""
    request, previous = StopRequest(), {}

    def note(number, frame):
        request.signal = number
        for caught, handler in previous.items():
            signal.signal(caught, handler)

    # Python hears signals in the main thread only; elsewhere the caller decides when to stop
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
