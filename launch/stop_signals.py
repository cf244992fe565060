"""Signals to a training process: the first asks it to stop after its step, the second ends it at once."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cispo.stop import StopRequest

log = logging.getLogger(__name__)

ASKING = (signal.SIGTERM, signal.SIGUSR1)
"""SIGTERM is what people and schedulers send; SIGUSR1 what our own sbatch script lets Slurm send before the limit."""


@contextmanager
def stop_on_signals(request: StopRequest) -> Iterator[None]:
    """SIGTERM and SIGUSR1 make the request; the second of them raises KeyboardInterrupt, as Ctrl-C always does.

    Enter it after ray.init, which takes SIGTERM for itself. Outside the main thread Python allows no handlers, so that
    the request is then never made.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if request.is_asked:
            raise KeyboardInterrupt(name)
        request.ask(f"it received {name}")
        log.warning("%s: the run stops after its present step, with a checkpoint; once more stops it at once", name)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in ASKING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
