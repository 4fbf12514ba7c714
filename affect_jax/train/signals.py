"""SIGTERM and Ctrl-C as a request to stop behind the current update, the same one in every process."""

import signal
import threading
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


class Interrupted(Exception):
    """The run stopped on request with everything saved; `signal` is the number of the signal that asked."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal = signal_number


class StopRequest:
    """Whether a signal has asked to stop: `signal` is its number, or None."""

    signal: int | None = None

    def note(self, number: int) -> None:
        """Take a signal for a request."""
        self.signal = number

    def holds_behind(self, step: int) -> bool:
        """Whether to stop behind update `step`; asked with rising steps, by every process with the same ones."""
        return self.signal is not None


class AgreedStopRequest(StopRequest):
    """A StopRequest of several processes: whichever is asked to stop, all do behind the same update.

    JAX's preemption service hears SIGTERM in each of them, and they settle on the first update that none has passed.
    Until then to ask takes a lock in this process and no word to the others.
    """

    def __init__(self):
        self._passed = 0

    def note(self, number: int) -> None:
        """Hand a signal on to the service."""
        signal.raise_signal(signal.SIGTERM)

    def holds_behind(self, step: int) -> bool:
        """As StopRequest's."""
        # the service says yes to no number but the one they settled on, which may lie within several updates at once
        for number in range(self._passed + 1, step + 1):
            if multihost_utils.reached_preemption_sync_point(number):
                self.signal = signal.SIGTERM
        self._passed = step
        return super().holds_behind(step)


@contextmanager
def stop_request():
    """Note the first SIGTERM or SIGINT in the yielded StopRequest; a second one acts as without us.

    (Not a second SIGTERM to one of several processes: JAX keeps those to itself.)
    """
    several = jax.process_count() > 1
    request, previous = AgreedStopRequest() if several else StopRequest(), {}

    def note(number, frame):
        for caught, handler in previous.items():
            signal.signal(caught, handler)
        request.note(number)

    # Python hears signals in the main thread only; elsewhere the caller decides when to stop
    if threading.current_thread() is threading.main_thread():
        heard = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
        previous = {number: signal.signal(number, note) for number in heard}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
