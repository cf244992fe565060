"""The OpenAI completions API as this client speaks it: token ids in; token ids, log-probabilities and versions out.

The field names are vLLM's (0.32), so that one client speaks to it and to `cispo serve`: `return_token_ids` asks for
`token_ids`, `logprobs: 0` for the log-probability of every sampled token, and `weight_versions` are spans
{"version", "start", "end"} of a choice's new tokens. Only `forced`, the places of tokens that the engine forced in, and
the rules of `RULES` are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cispo.types import StopReason
from rollout.engine_protocol import TokenIds
from rollout.sampling import Sampling

OUR_OWNER = "cispo"
"""`owned_by` of the models of `cispo serve`."""
RULES = ("think_open_id", "think_close_id", "thinking_budget", "repetition_tokens", "repetition_probability")
"""Fields of Sampling that only `cispo serve` knows."""

_REASONS = {
    "stop": StopReason.STOP,
    "eos_token": StopReason.STOP,
    "length": StopReason.LENGTH,
    "repetition": StopReason.REPETITION,
}
ABORTED = "abort"
_NEUTRAL = {"min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}


class WireFault(Exception):
    """The server's answer lacks what learning needs, or contradicts itself."""


@dataclass(frozen=True)
class Piece:
    """What a server sent of one choice at once.

    Attributes:
        index: of the choice.
        token_ids, logp, version: of the new tokens; version is -1 where forced, and the list is empty if the server
            tells none.
        text: for servers without token ids.
        finish: why the choice ended, in the server's word; "" if it did not.
        note: more about that, from `cispo serve`.
    """

    index: int
    token_ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    version: list[int] = field(default_factory=list)
    text: str = ""
    finish: str = ""
    note: str = ""

    @property
    def reason(self) -> StopReason | None:
        """Why it ended as trajectories say it; None for a word that means something else."""
        return _REASONS.get(self.finish)


def completion_body(
    model: str, token_ids: TokenIds, sampling: Sampling, seed: int, num_samples: int, *, is_ours: bool
) -> dict[str, Any]:
    """The JSON of POST /v1/completions. A server's own defaults (a model's generation_config.json) are overruled."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": np.asarray(token_ids).tolist(),
        "n": num_samples,
        "seed": seed,
        "temperature": sampling.temperature,
        "top_p": 1.0 if sampling.is_greedy else sampling.top_p,
        "top_k": 0 if sampling.is_greedy else sampling.top_k,
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        **_NEUTRAL,
    }
    if is_ours:
        body |= {name: getattr(sampling, name) for name in RULES}
    return body


def has_rules(sampling: Sampling) -> bool:
    """The request needs what only `cispo serve` knows."""
    return sampling.thinking_budget > 0 or sampling.repetition_tokens > 0


def read_pieces(event: Mapping[str, Any], num_choices: int) -> list[Piece]:
    """The choices of an answer or of one event of a stream. Raises WireFault."""
    try:
        return [_piece(choice, num_choices) for choice in event["choices"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WireFault(f"an answer of another form than OpenAI's ({type(error).__name__}: {error})") from error


def _piece(choice: Mapping[str, Any], num_choices: int) -> Piece:
    index = int(choice["index"])
    if not 0 <= index < num_choices:
        raise WireFault(f"choice {index} of a request for {num_choices}")
    token_ids = [int(id) for id in choice.get("token_ids") or []]
    # An API without token ids may still tell log-probabilities, of tokens that nobody knows.
    logp = (choice.get("logprobs") or {}).get("token_logprobs") or [] if token_ids else []
    if len(logp) not in (0, len(token_ids)):
        raise WireFault(f"{len(token_ids)} token ids with {len(logp)} log-probabilities")
    values = [_number(value) for value in logp]
    version = _versions(choice, len(token_ids))
    words = [str(choice.get(name) or "") for name in ("text", "finish_reason", "note")]
    return Piece(index, token_ids, values, version, *words)


def _number(value: Any) -> float:
    number = float(value)
    if math.isnan(number) or number > 1e-3:
        raise WireFault(f"a log-probability of {value}")
    return number


def _versions(choice: Mapping[str, Any], num_tokens: int) -> list[int]:
    """One version per token from the spans, whose places count from the first token of this piece."""
    spans: Sequence[Mapping[str, Any]] = choice.get("weight_versions") or []
    version: list[int] = []
    for span in spans:
        if int(span["start"]) != len(version) or not str(span["version"]).isdigit():
            return []
        version += [int(span["version"])] * (int(span["end"]) - int(span["start"]))
    if len(version) != num_tokens:
        return []
    for place in choice.get("forced") or []:
        version[place] = -1
    return version
