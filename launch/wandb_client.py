"""W&B's own process, which keeps and sends what a run gives it: waited for as long as was said, and no longer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress


class Stuck(TimeoutError):
    """A call to W&B took too long, and its process was killed."""


def within(seconds: float, call: Callable[[], object]) -> None:
    """Call it in a thread; if that takes longer, kill W&B's process and raise Stuck."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        kill_client()
        thread.join(seconds)
        raise Stuck(f"it took longer than {seconds:g} s")
    if errors:
        raise errors[0]


def kill_client() -> None:
    """End it at once: left alone it would go on waiting for a server, and our exit for it.

    Nothing of W&B's that is public does that.
    """
    import wandb

    with suppress(AttributeError):
        wandb.setup()._connection._proc._process.kill()
    forget_client()


def forget_client() -> None:
    """So that the next run has a new one; one that died is no reason to end ours, which SystemExit would be."""
    import wandb

    with suppress(Exception, SystemExit):
        wandb.teardown()
