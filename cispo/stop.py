"""A wish that a run end early, which the loop looks at between two steps, so that nothing it did is lost."""

from __future__ import annotations

from cispo.errors import CispoError


class RunStopped(CispoError):
    """The run ended before its last step because somebody asked; its checkpoint is that of the last finished step."""

    exit_status = 75
    """EX_TEMPFAIL of sysexits.h: not done, try again. What `cispo` exits with, so that a script can tell."""


class StopRequest:
    """Anybody may ask, from any thread or signal handler; the first reason stands."""

    def __init__(self) -> None:
        self.reason = ""

    def ask(self, reason: str) -> None:
        """The run is to stop after the step that it is in; `reason` completes "stopped after step 12: ..."."""
        self.reason = self.reason or reason

    @property
    def is_asked(self) -> bool:
        """True from the first `ask` on."""
        return bool(self.reason)

    def end_if_asked(self, step: int) -> None:
        """Raise RunStopped if somebody asked; to be called when the checkpoint of `step` is complete."""
        if self.is_asked:
            raise RunStopped(f"stopped after step {step}, whose checkpoint is complete: {self.reason}.")
