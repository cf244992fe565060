"""Settings of the two ends of the remote tier: the service that runs programs, and the client that sends them."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

DEFAULT_TOKEN_FILE = "~/.cispo/sandbox_token"


@dataclass(frozen=True)
class ServiceConfig:
    """`cispo sandbox serve`: where it listens and what it takes.

    Attributes:
        host: address to listen on; anything but 127.0.0.1 opens the service to others, who still need the token.
        port: TCP port; 0 takes a free one and says which.
        token_file: the token, in a file that nobody else may read; made if it is missing. The environment variable
            CISPO_SANDBOX_TOKEN wins over it.
        max_queue: programs that may wait besides those that run; one more is refused with 429.
        max_request_bytes: largest body; a larger one is refused with 413.
        max_connections: open connections; at one more, the one that has been silent for longest is closed.
        max_wall_seconds: largest limits.wall_seconds that a request may ask for.
        max_memory_bytes: largest limits.memory_bytes that a request may ask for.
        request_seconds: time in which a request must have arrived, and a second more for each MiB of it.
        idle_seconds: time after which a connection without a request is closed.
        heartbeat_seconds: an answer that takes longer begins with a line feed each time, so that the client sees life.
        drain_seconds: time that accepted programs have to end after SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = 8700
    token_file: str = DEFAULT_TOKEN_FILE
    max_queue: int = 1024
    max_request_bytes: int = 64 << 20
    max_connections: int = 1024
    max_wall_seconds: float = 300.0
    max_memory_bytes: int = 4 << 30
    request_seconds: float = 60.0
    idle_seconds: float = 75.0
    heartbeat_seconds: float = 5.0
    drain_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"sandbox.service.port must be a TCP port or 0, got {self.port}")
        if self.max_queue < 0:
            raise ValueError(f"sandbox.service.max_queue must not be negative, got {self.max_queue}")
        for name, value in vars(self).items():
            if isinstance(value, int | float) and name not in ("port", "max_queue") and not value > 0:
                raise ValueError(f"sandbox.service.{name} must be positive, got {value}")


@dataclass(frozen=True)
class RemoteConfig:
    """sandbox.isolation=remote: the services that run the programs, and how patient their client is.

    Attributes:
        urls: http://host:port of each service.
        token_file: where the services' token is; the environment variable CISPO_SANDBOX_TOKEN wins over it.
        tries: how often a program is given to a service before its failure is a system error (SE).
        connect_seconds: time to open a connection.
        silence_seconds: how long a service may say nothing at all; must exceed its heartbeat_seconds.
        deadline_seconds: time from the moment a program is sent to its verdict, all tries together, waiting in the
            services' lines included; longer is a system error.
    """

    urls: tuple[str, ...] = ()
    token_file: str = DEFAULT_TOKEN_FILE
    tries: int = 5
    connect_seconds: float = 5.0
    silence_seconds: float = 20.0
    deadline_seconds: float = 900.0

    def __post_init__(self) -> None:
        if isinstance(self.urls, str):
            raise ValueError(f"sandbox.remote.urls must be a list, e.g. [{self.urls}], got {self.urls!r}")
        for url in self.urls:
            split_url(url)
        if len(set(self.urls)) < len(self.urls):
            raise ValueError(f"sandbox.remote.urls names a service twice: {', '.join(self.urls)}")
        for name in ("tries", "connect_seconds", "silence_seconds", "deadline_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"sandbox.remote.{name} must be positive, got {getattr(self, name)}")


def split_url(url: str) -> tuple[str, int]:
    """Host and port of http://host:port. Raises ValueError for anything else."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number
        host, port = None, None
    is_plain = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
    if parts.scheme != "http" or not host or not port or not is_plain:
        raise ValueError(f"sandbox.remote.urls takes addresses of the form http://host:port, got {url!r}")
    return host, port
