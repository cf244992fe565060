"""Whether W&B is used, and how: decided before a run starts; nobody is asked, and no network is waited for."""

from __future__ import annotations

import netrc
import os
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from cispo.errors import ConfigError
from configs.fleet import TrackingConfig

ALIASES = {"run": "online", "dryrun": "offline"}
"""Old words of WANDB_MODE."""

OWN_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""Of W&B itself, under its two names: a key that `wandb login` left for one is good for the other."""

CONNECT_SECONDS = 5.0


def wandb_mode(config: TrackingConfig) -> str:
    """ "disabled", "offline" or "online". Raises ConfigError for an online run without a login."""
    said = os.environ.get("WANDB_MODE", "")
    if config.wandb == "disabled":
        return "disabled"
    asked = ALIASES.get(said, said) or config.wandb
    if asked not in ("auto", "disabled", "offline", "online"):
        raise ConfigError(
            f"the environment variable WANDB_MODE must be online, offline or disabled, because it wins over "
            f"tracking.wandb; got {said!r}. Unset it, or set one of these."
        )
    if asked == "auto":
        return "online" if has_login() else "offline"
    if asked == "online" and not has_login():
        where = "WANDB_MODE=online" if said else "tracking.wandb=online"
        raise ConfigError(
            f"{where} needs a login, and none for {base_url()} was found; run `wandb login`, set WANDB_API_KEY, or "
            f"take tracking=offline, whose runs `wandb sync` can send later."
        )
    return asked


def base_url() -> str:
    """The server: https://api.wandb.ai, or the one of WANDB_BASE_URL or of W&B's own settings files."""
    if url := os.environ.get("WANDB_BASE_URL"):
        return url
    import wandb

    return str(wandb.setup().settings.base_url)


def has_login() -> bool:
    """A key for the server in the environment or in the file that `wandb login` writes; nobody is asked if it holds."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(base_url()).netloc
    hosts = OWN_HOSTS if host in OWN_HOSTS else (host,)
    names = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for name in names:
        with suppress(OSError, netrc.NetrcParseError):
            keys = netrc.netrc(Path(name).expanduser())
            if any((found := keys.authenticators(host)) and found[2] for host in hosts):
                return True
    return False


def answers(url: str) -> bool:
    """Something listens there, or a proxy stands between; waits CONNECT_SECONDS at most."""
    parts = urlsplit(url)
    if os.environ.get(f"{parts.scheme}_proxy") or os.environ.get(f"{parts.scheme.upper()}_PROXY"):
        return True
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
