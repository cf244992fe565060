"""Which errors are sentences for the user, and which are defects that keep their traceback."""

from __future__ import annotations

import errno


def is_message(error: BaseException) -> bool:
    """True for errors that are meant for the user: every package's own tree, and files that the system refuses."""
    from cispo.errors import CispoError
    from model.errors import ModelError
    from sandbox.errors import SandboxError

    if isinstance(error, OSError):
        return error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, CispoError | ModelError | SandboxError)
