"""The secret that a client shows to an engine's server: from the environment, or a file that nobody else may read.

Who has it may sample, and may replace the policy's weights.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path

from cispo.errors import ConfigError

TOKEN_VARIABLE = "CISPO_ENGINE_TOKEN"

_FORM = re.compile(r"[!-~]{16,512}")


def read_token(token_file: str) -> str:
    """The token of TOKEN_VARIABLE, or else of the file; "" if `token_file` is "" and the variable is not set.

    Raises ConfigError when there is none, when it is too short to be a secret, or when others may read the file.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    if token:
        return _checked(token, f"the environment variable {TOKEN_VARIABLE}")
    if not token_file:
        return ""
    path = Path(token_file).expanduser()
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            status = os.fstat(file.fileno())
            text = file.read(1024).strip()
    except OSError as error:
        raise ConfigError(
            f"The token of the engine's server cannot be read from {path} ({error.strerror}): copy the server's token "
            f'file there with mode 600, set {TOKEN_VARIABLE}, or engine.server.token_file="" for a server without one.'
        ) from error
    if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"The token file {path} must belong to you and be closed to everybody else, because who reads it may "
            f"replace the policy; it has mode {stat.S_IMODE(status.st_mode):o}: chmod 600 {path}"
        )
    return _checked(text, str(path))


def read_or_make_token(token_file: str) -> tuple[str, str]:
    """The token, and a phrase that says whence; a missing file is made. Raises ConfigError as `read_token` does."""
    if os.environ.get(TOKEN_VARIABLE):
        return read_token(token_file), f"from {TOKEN_VARIABLE}"
    path = Path(token_file).expanduser()
    if not path.exists():
        _make(path)
    return read_token(token_file), f"in {path}"


def _make(path: Path) -> None:
    """A new secret under `path`. Of two servers that start at once one makes it and the other reads it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        try:
            os.link(new, path)
        except FileExistsError:
            pass
        finally:
            new.unlink()
    except OSError as error:
        raise ConfigError(
            f"A token for the server cannot be written to {path} ({error.strerror}): set serve.token_file to a file "
            f"that can be made, or {TOKEN_VARIABLE}."
        ) from error


def _checked(token: str, where: str) -> str:
    if _FORM.fullmatch(token) is None:
        raise ConfigError(
            f"The token in {where} must be one word of 16 to 512 printable ASCII characters, because a shorter one can "
            f'be guessed; it has {len(token)}: python -c "import secrets; print(secrets.token_urlsafe(32))" makes one.'
        )
    return token
