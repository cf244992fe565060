"""The secret that a client shows to an engine's server. Who has it may sample, and may replace the policy's weights."""

from __future__ import annotations

import os

from cispo.errors import ConfigError
from sandbox.access_token import AccessToken

TOKEN_VARIABLE = "CISPO_ENGINE_TOKEN"

SERVER_TOKEN = AccessToken(
    variable=TOKEN_VARIABLE,
    server="the engine's server",
    power="replace the policy",
    if_missing=(
        f"copy the server's token file there with mode 600, set {TOKEN_VARIABLE}, "
        f'or engine.server.token_file="" for a server without one'
    ),
    setting="serve.token_file",
    error=lambda text: ConfigError(f"{text[0].upper()}{text[1:]}."),
)


def read_token(token_file: str) -> str:
    """The token of TOKEN_VARIABLE, or else of the file; "" if `token_file` is "" and the variable is not set.

    Raises ConfigError when there is none, when it is too short to be a secret, or when others may read the file.
    """
    if not token_file and not os.environ.get(TOKEN_VARIABLE):
        return ""
    return SERVER_TOKEN.read(token_file)
