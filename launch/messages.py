"""Which errors are sentences for the user, and which are defects that keep their traceback."""

from __future__ import annotations


def is_message(error: BaseException) -> bool:
    """True for errors that are meant for the user: every package's own exception tree."""
    from cispo.errors import CispoError
    from model.errors import ModelError
    from sandbox.errors import SandboxError

    return isinstance(error, CispoError | ModelError | SandboxError)
