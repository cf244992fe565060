"""What a server can do, asked before anything is learnt from it: who it is, and which log-probabilities it returns.

The importance ratio divides by the probability under the distribution that was *sampled from*. Many servers return that
of the model's own distribution instead, before temperature and truncation; then every ratio is wrong and nothing shows
it. `cispo serve` says which it returns; any other server is asked for one token at temperatures 1 and 2, whose top
log-probabilities must shrink by half, and with top-k 2, after which two tokens must make up the whole.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cispo.errors import ConfigError
from rollout.completion_wire import OUR_OWNER, WireFault, completion_body, read_pieces
from rollout.sampling import Sampling
from rollout.server_client import Server, ServerFault

log = logging.getLogger(__name__)

_TOP = 20
_PROMPTS = ((1,), (2, 3), (5, 8, 13))
_LEAST_SPREAD = 0.02
"""Below it the most likely tokens are too close to one another to tell one temperature from the other."""


@dataclass(frozen=True)
class ServerFacts:
    """What a server is.

    Attributes:
        model: the name to ask it for.
        is_ours: it is `cispo serve`.
        max_length: tokens of its longest sequence; 0 if it does not say.
        has_token_ids: it returns token ids with log-probabilities.
        is_of_sampling: log-probabilities are those of the distribution sampled from; None if that could not be told.
        version, weights: of `cispo serve`: version of its weights, and the digest of the package that brought them.
    """

    model: str
    is_ours: bool
    max_length: int
    has_token_ids: bool
    is_of_sampling: bool | None
    version: int = 0
    weights: str = ""


def facts_of(server: Server, model: str) -> ServerFacts:
    """Ask a server what it is. Raises ConfigError when it does not answer, or not as such a server does."""
    try:
        entry = _model_entry(server.get("/v1/models"), server.url, model)
        name, max_length = str(entry["id"]), int(entry.get("max_model_len") or 0)
        if entry.get("owned_by") == OUR_OWNER:
            ours = entry["cispo"]
            return ServerFacts(name, True, max_length, True, True, int(ours["version"]), str(ours["weights"]))
        if not _gives_token_ids(server, name):
            return ServerFacts(name, False, max_length, False, False)
        return ServerFacts(name, False, max_length, True, _is_of_sampling(server, name))
    except ServerFault as fault:
        raise ConfigError(
            f"The server of engine.server.urls must answer before a run starts, but {fault}; start it, or correct "
            f"engine.server.urls, engine.server.model or the token."
        ) from fault
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{server.url} must speak the OpenAI API, but its answer has another form ({type(error).__name__}: "
            f"{error}); correct engine.server.urls."
        ) from error


def check_facts(facts: ServerFacts, url: str, *, may_retokenise: bool) -> None:
    """Raise ConfigError for a server that cannot be learnt from, unless nothing is to be learnt."""
    if not facts.has_token_ids and not may_retokenise:
        raise ConfigError(
            f"{url} returns no token ids with log-probabilities (return_token_ids, logprobs), and a policy learns from "
            f"the tokens that were sampled, not from a tokenisation of their text: use `cispo serve` or vLLM, or "
            f"engine.server.retokenise=true to evaluate only."
        )
    if facts.has_token_ids and facts.is_of_sampling is None:
        log.warning(
            "%s: its most likely tokens are too close to tell whether it returns the log-probabilities of the "
            "distribution sampled from; it is used at temperature 1 without truncation only.",
            url,
        )


def _model_entry(answer: Any, url: str, model: str) -> Mapping[str, Any]:
    entries = {str(entry["id"]): entry for entry in answer["data"]}
    if model not in entries and (model or len(entries) != 1):
        raise ConfigError(
            f"engine.server.model must name one of the models of {url} ({', '.join(entries) or 'none'}); got {model!r}."
        )
    return entries[model] if model else next(iter(entries.values()))


def _ask(server: Server, model: str, prompt: tuple[int, ...], **changed: Any) -> Mapping[str, Any]:
    body = completion_body(model, prompt, Sampling(max_new_tokens=1), 0, 1, is_ours=False)
    answer: Mapping[str, Any] = server.post("/v1/completions", body | changed)
    return answer


def _gives_token_ids(server: Server, model: str) -> bool:
    """Whether a token comes back as an id with its log-probability; a server may refuse fields that are new to it."""
    try:
        [piece] = read_pieces(_ask(server, model, _PROMPTS[0]), 1)
    except WireFault:
        return False
    except ServerFault as fault:
        if fault.status in (400, 422):
            return False
        raise
    return len(piece.token_ids) == len(piece.logp) == 1


def _is_of_sampling(server: Server, model: str) -> bool | None:
    """Whether the log-probabilities are of the distribution sampled from; None if no prompt can tell."""
    for prompt in _PROMPTS:
        at_one = _top(server, model, prompt, temperature=1.0)
        at_two = _top(server, model, prompt, temperature=2.0)
        shared = sorted(at_one.keys() & at_two.keys(), key=lambda token: at_one[token])
        if len(shared) < 2:
            continue
        low, high = shared[0], shared[-1]
        spread = at_one[high] - at_one[low]
        if spread < _LEAST_SPREAD:
            continue
        shrunk = (at_two[high] - at_two[low]) / spread
        cut = _top(server, model, prompt, temperature=1.0, top_k=2)
        whole = sum(math.exp(value) for value in cut.values())
        return abs(shrunk - 0.5) < 0.1 and abs(whole - 1) < 0.02
    return None


def _top(server: Server, model: str, prompt: tuple[int, ...], **changed: Any) -> dict[str, float]:
    """The most likely tokens of the next place and their log-probabilities; what cannot be drawn is left out."""
    answer = _ask(server, model, prompt, logprobs=_TOP, return_tokens_as_token_ids=True, **changed)
    top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    return {str(token): float(value) for token, value in top.items() if value is not None and value > -1e4}
