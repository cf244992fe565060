"""Which engine samples, and how large and how patient it is: the settings of every engine, without importing any."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from cispo.errors import ConfigError

KINDS = ("hybrid", "openai", "vllm")
STALE_STATES = ("keep", "recompute")
DEFAULT_TOKEN_FILE = "~/.cispo/engine_token"
DTYPES = ("auto", "float32", "bfloat16", "float16")

_DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class ServerConfig:
    """engine.kind=openai: the servers that sample, and how patient their client is.

    Attributes:
        urls: http://host:port of each server, without /v1.
        model: the name to ask the servers for; "" is the only one that they have.
        token_file: a file with the servers' token, of mode 600; the environment variable CISPO_ENGINE_TOKEN wins over
            it, and "" shows none.
        max_in_flight: requests under way at the same time, each of which holds a connection; others wait here.
        stream_interval: new tokens that a server may gather before it sends them.
        tries: how often in a row a request may come to nothing before it fails; an answer with tokens starts anew.
        backoff_seconds: wait before the second try; it doubles with each further one.
        connect_seconds: time to open a connection.
        silence_seconds: how long a server may say nothing at all while a request is under way.
        deadline_seconds: time from the submission of a request to its last token, all tries together.
        update_seconds: time in which a server must have taken new weights.
        weights_folder: where new weights are written for servers that read them from a folder (vLLM), which must see it
            under the same path; "" for servers that take them over the wire (cispo serve).
        retokenise: for evaluation only: take servers that give text without token ids or log-probabilities.
    """

    urls: tuple[str, ...] = ()
    model: str = ""
    token_file: str = DEFAULT_TOKEN_FILE
    max_in_flight: int = 64
    stream_interval: int = 16
    tries: int = 5
    backoff_seconds: float = 0.5
    connect_seconds: float = 5.0
    silence_seconds: float = 300.0
    deadline_seconds: float = 7200.0
    update_seconds: float = 600.0
    weights_folder: str = ""
    retokenise: bool = False

    def __post_init__(self) -> None:
        faults = []
        if isinstance(self.urls, str):
            faults.append(f"engine.server.urls must be a list, e.g. [{self.urls}]; got {self.urls!r}.")
        else:
            wrong = [url for url in self.urls if not _is_url(url)]
            if wrong:
                faults.append(f"engine.server.urls takes http://host:port; got {', '.join(map(repr, wrong))}.")
            if len(set(self.urls)) < len(self.urls):
                faults.append(f"engine.server.urls names a server twice: {', '.join(self.urls)}.")
        faults += [
            f"engine.server.{name} must be positive; got {value}."
            for name, value in vars(self).items()
            if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0
        ]
        if faults:
            raise ConfigError(*faults)


@dataclass(frozen=True)
class VllmConfig:
    """engine.kind=vllm: vLLM in the worker's own process.

    Attributes:
        dtype: of weights and activations: auto (the checkpoint's), float32, bfloat16 or float16.
        memory_fraction: share of the device's memory that vLLM takes.
        enforce_eager: no compilation and no graphs: starts sooner, decodes slower.
    """

    dtype: str = "auto"
    memory_fraction: float = 0.9
    enforce_eager: bool = False

    def __post_init__(self) -> None:
        faults = []
        if self.dtype not in DTYPES:
            faults.append(f"engine.vllm.dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}.")
        if not 0 < self.memory_fraction <= 1:
            faults.append(f"engine.vllm.memory_fraction must lie in (0, 1]; got {self.memory_fraction:g}.")
        if faults:
            raise ConfigError(*faults)


@dataclass(frozen=True)
class EngineConfig:
    """Which engine samples, and its size.

    Attributes:
        num_slots: sequences sampled at the same time.
        max_length: tokens of the longest sequence, prompt included.
        prefill_tokens: prompt tokens per forward pass; a longer prompt is prefilled in pieces of that size, one a
            step.
        stale_states: what new weights do to sequences under way: "keep" goes on over states and keys that the older
            weights computed; "recompute" reads their tokens again, so that every token is sampled from one policy.
        kind: "hybrid" samples with the policy itself, "openai" at servers, "vllm" with vLLM in the worker; or a
            function of yours, as my.module:make_engine, that takes the run's configuration and its tokenizer.
        device: of kind hybrid: "cpu", "cuda" or "cuda:0"; each worker sees the GPUs of cluster.gpus_per_worker only.
        server: the servers of kind openai.
        vllm: settings of kind vllm.
    """

    num_slots: int = 64
    max_length: int = 2048
    prefill_tokens: int = 8192
    stale_states: str = "keep"
    kind: str = "hybrid"
    device: str = "cpu"
    server: ServerConfig = field(default_factory=ServerConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)

    def __post_init__(self) -> None:
        faults = [
            f"engine.{name} must be at least {least}, got {value}"
            for name, value, least in (
                ("num_slots", self.num_slots, 1),
                ("max_length", self.max_length, 2),
                ("prefill_tokens", self.prefill_tokens, 1),
            )
            if value < least
        ]
        if self.stale_states not in STALE_STATES:
            faults.append(f"engine.stale_states must be one of {', '.join(STALE_STATES)}, got {self.stale_states!r}")
        if self.kind not in KINDS and not self.is_custom:
            faults.append(
                f"engine.kind must be one of {', '.join(KINDS)}, or a function as my.module:make_engine; got "
                f"{self.kind!r}."
            )
        if self.kind == "openai" and not self.server.urls:
            faults.append("engine.kind=openai needs engine.server.urls=[http://host:port,...].")
        if faults:
            raise ConfigError(*faults)

    @property
    def is_custom(self) -> bool:
        """`kind` names a function of the user's."""
        return _DOTTED.fullmatch(self.kind) is not None


def _is_url(url: str) -> bool:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:  # a port that is no number
        return False
    is_bare = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and is_bare and port != 0
