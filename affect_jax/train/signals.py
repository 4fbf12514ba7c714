"""SIGTERM and Ctrl-C as a request to stop after the current step, the same step in every process."""

import signal
import threading
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

from affect_jax.command_line import handling


class Interrupted(Exception):
    """The run stopped on request, with everything saved; `signal` is the number of the signal."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal = signal_number


class StopRequest:
    """Request to stop: `signal` is the number of the signal that was received, or None."""

    signal: int | None = None

    def receive(self, number: int) -> None:
        """Take a signal as a request to stop."""
        self.signal = number

    def is_due_after(self, step: int) -> bool:
        """Return True if the run should stop after `step`; every process calls this with the same, rising steps."""
        return self.signal is not None


class AgreedStopRequest(StopRequest):
    """StopRequest of several processes: all stop after the same step, whichever of them gets the signal.

    JAX's preemption service receives SIGTERM in each process, and the processes agree on the first step that none of
    them has passed. Until then a call takes a lock in this process and sends nothing to the others.
    """

    def __init__(self):
        self._passed = 0

    def receive(self, number: int) -> None:
        """Pass a signal on to the service."""
        signal.raise_signal(signal.SIGTERM)

    def is_due_after(self, step: int) -> bool:
        """Return True if the run should stop after `step`."""
        # The service answers yes only for the step that was agreed on, which may be one of several in a dispatch.
        for number in range(self._passed + 1, step + 1):
            if multihost_utils.reached_preemption_sync_point(number):
                self.signal = signal.SIGTERM
        self._passed = step
        return super().is_due_after(step)


@contextmanager
def stop_request():
    """Yield a StopRequest that receives the first SIGTERM or SIGINT; a second signal has its usual effect.

    A signal that the process ignores, such as SIGINT in the background of a script, stays ignored. With several
    processes JAX receives every SIGTERM itself.
    """
    several = jax.process_count() > 1
    request, previous = AgreedStopRequest() if several else StopRequest(), {}

    def receive(number, frame):
        for caught, handler in previous.items():
            signal.signal(caught, handler)
        request.receive(number)

    # Python handles signals in the main thread only; in another thread the caller decides when to stop.
    if threading.current_thread() is threading.main_thread():
        handled = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
        handled = [number for number in handled if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        previous = {number: signal.signal(number, receive) for number in handled}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def ended_by_signals():
    """End the process at once on SIGTERM or Ctrl-C in the block, while it computes outside of Python too.

    Python's own handlers wait until the computation ends, which takes up to a minute while XLA compiles. Use it where
    nothing can be lost. With several processes the block is unchanged, because they must end together. Yields True if
    the block can be ended.
    """
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield False
        return
    with handling(signal.SIGTERM, signal.SIG_DFL), handling(signal.SIGINT, signal.SIG_DFL):
        yield True
