"""The secret that a client shows to a server: from the environment or from a file that nobody else may read."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import SandboxError

TOKEN_VARIABLE = "CISPO_SANDBOX_TOKEN"

_FORM = re.compile(r"[!-~]{16,512}")


@dataclass(frozen=True)
class AccessToken:
    """The secret of one kind of server, and how to speak of it.

    Attributes:
        variable: of the environment; it comes before any file.
        server: what it opens, with its article.
        power: what its reader may do.
        if_missing: what a client without it can do.
        setting: names the server's file.
        error: makes an error of a sentence.
    """

    variable: str
    server: str
    power: str
    if_missing: str
    setting: str
    error: Callable[[str], Exception]

    def read(self, token_file: str) -> str:
        """The token of the variable, or else of the file.

        Raises `error` when there is none, when it is too short to be a secret, or when others may read the file.
        """
        token = os.environ.get(self.variable, "")
        if token:
            return self._checked(token, f"the environment variable {self.variable}")
        path = Path(token_file).expanduser()
        try:
            with path.open(encoding="ascii", errors="replace") as file:
                status = os.fstat(file.fileno())
                text = file.read(1024).strip()
        except OSError as error:
            raise self.error(
                f"the token of {self.server} cannot be read from {path} ({error.strerror}): {self.if_missing}"
            ) from error
        if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid not in (os.geteuid(), 0):
            raise self.error(
                f"the token file {path} must belong to you and be closed to everybody else, because who reads it may "
                f"{self.power}; it has mode {stat.S_IMODE(status.st_mode):o}: chmod 600 {path}"
            )
        return self._checked(text, str(path))

    def read_or_make(self, token_file: str) -> tuple[str, str]:
        """The token, and a phrase that says whence; a missing file is made. Raises `error` as `read` does."""
        if os.environ.get(self.variable):
            return self.read(token_file), f"from {self.variable}"
        path = Path(token_file).expanduser()
        if not path.exists():
            self._make(path)
        return self.read(token_file), f"in {path}"

    def _make(self, path: Path) -> None:
        """A new secret under `path`.

        Of two servers that start at once on a shared file system one makes it and the other reads it: the file appears
        under its name with its content.
        """
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
            raise self.error(
                f"a token for {self.server} cannot be written to {path} ({error.strerror}): set {self.setting} to a "
                f"file that can be made, or {self.variable}"
            ) from error

    def _checked(self, token: str, where: str) -> str:
        if _FORM.fullmatch(token) is None:
            raise self.error(
                f"the token in {where} must be one word of 16 to 512 printable ASCII characters, because a shorter one "
                f'can be guessed; it has {len(token)}: python -c "import secrets; print(secrets.token_urlsafe(32))" '
                f"makes one"
            )
        return token


SERVICE_TOKEN = AccessToken(
    variable=TOKEN_VARIABLE,
    server="the sandbox service",
    power="run programs",
    if_missing=f"copy the service's token file there with mode 600, or set {TOKEN_VARIABLE}",
    setting="sandbox.service.token_file",
    error=SandboxError,
)
