"""The JSON of `cispo serve`: requests of the OpenAI API in, answers and events out.

Where vLLM adds to that API its field names are used (`top_k`, `stop_token_ids`, `ignore_eos`, `return_token_ids`,
`token_ids`, `stream_interval`, `weight_versions`), so that a client of one speaks to the other. What is asked for and
cannot be done is refused in a sentence: a penalty that were ignored would be another policy.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.strict import nearest
from launch.engine_thread import News
from model import Tokenizer
from rollout.completion_wire import RULES
from rollout.engine import Completion, Request
from rollout.sampling import Sampling

_MAX_SAMPLES = 4096
_ANY = object()
# What a request may name though it is not done here, and the values with which it asks for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "length_penalty": (None, 1),
    "logit_bias": (None, {}),
    "min_p": (None, 0),
    "min_tokens": (None, 0),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "response_format": (None, {"type": "text"}),
    "stop": (None, [], ""),
    "suffix": (None, ""),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "use_beam_search": (None, False),
    "metadata": (_ANY,),
    "skip_special_tokens": (_ANY,),
    "store": (_ANY,),
    "stream_options": (_ANY,),
    "user": (_ANY,),
}
_OWN = (
    "model", "prompt", "messages", "n", "seed", "temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens",
    "stop_token_ids", "ignore_eos", "logprobs", "return_token_ids", "return_tokens_as_token_ids", "stream",
    "stream_interval", *RULES,
)  # fmt: skip


class RequestFault(Exception):
    """A request cannot be fulfilled; `status` is the HTTP status that says so."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Wanted:
    """A request, and how it is to be answered.

    Attributes:
        is_chat: in the form of chat completions.
        is_stream: as server-sent events, every `interval` tokens.
        has_logp, has_ids: log-probabilities and token ids are wanted.
        names_ids: tokens are written as token_id:<id>.
    """

    request: Request
    model: str
    created: int
    is_chat: bool
    is_stream: bool
    interval: int
    has_logp: bool
    has_ids: bool
    names_ids: bool


@dataclass(frozen=True)
class Served:
    """What is served: all that a request is read by."""

    name: str
    tokenizer: Tokenizer
    max_length: int


def read_request(body: Any, served: Served, *, is_chat: bool) -> Wanted:
    """A request for completions. Raises RequestFault."""
    if not isinstance(body, Mapping):
        raise RequestFault("the body must be a JSON object")
    _refuse_unknown(body)
    get = _Reader(body)
    model = get("model", str, served.name)
    if model != served.name:
        raise RequestFault(f"there is no model {model!r}; there is {served.name!r}", 404)
    prompt = _messages(body, served.tokenizer) if is_chat else _prompt(body.get("prompt"), served.tokenizer)
    room = served.max_length - len(prompt)
    default_tokens = max(1, room) if is_chat else 16
    max_tokens = get("max_tokens", int, get("max_completion_tokens", int, default_tokens))
    stop = _stop_tokens(body, served.tokenizer)
    top_k = get("top_k", int, 0)
    sampling = Sampling(
        temperature=get("temperature", float, 1.0),
        top_p=get("top_p", float, 1.0),
        top_k=0 if top_k == -1 else top_k,
        max_new_tokens=max_tokens,
        stop_token_ids=stop,
        think_open_id=get("think_open_id", int, -1),
        think_close_id=get("think_close_id", int, -1),
        thinking_budget=get("thinking_budget", int, 0),
        repetition_tokens=get("repetition_tokens", int, 0),
        repetition_probability=get("repetition_probability", float, Sampling.repetition_probability),
    )
    num_samples = get("n", int, 1)
    if not 1 <= num_samples <= _MAX_SAMPLES:
        raise RequestFault(f"n must lie in [1, {_MAX_SAMPLES}], got {num_samples}")
    id = f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}"
    seed = get("seed", int, secrets.randbits(63))
    return Wanted(
        request=Request(id, tuple(prompt), num_samples, seed, sampling),
        model=model,
        created=int(time.time()),
        is_chat=is_chat,
        is_stream=get("stream", bool, False),
        interval=max(1, get("stream_interval", int, 1)),
        has_logp=get("logprobs", bool, False) if is_chat else _logprobs(body.get("logprobs")),
        has_ids=get("return_token_ids", bool, False),
        names_ids=get("return_tokens_as_token_ids", bool, False),
    )


class _Reader:
    """Values of a JSON object by name and type."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    def __call__(self, name: str, kind: type, default: Any) -> Any:
        value = self._body.get(name)
        if value is None:
            return default
        accepted = (int, float) if kind is float else (kind,)
        if not isinstance(value, accepted) or isinstance(value, bool) != (kind is bool):
            words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
            raise RequestFault(f"{name} must be {words[kind]}, got {value!r}")
        return kind(value)


def _refuse_unknown(body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if name in _OWN:
            continue
        if name not in _NEUTRAL:
            raise RequestFault(f"unknown field {name!r}: {nearest(name, [*_OWN, *_NEUTRAL])}")
        neutral = _NEUTRAL[name]
        if neutral[0] is not _ANY and value not in neutral:
            raise RequestFault(f"{name} is not supported here, and {value!r} would change the answer; leave it out")


def _prompt(prompt: Any, tokenizer: Tokenizer) -> list[int]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], list | str):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    if _are_ids(prompt):
        return list(prompt)
    raise RequestFault("prompt must be one text or one list of token ids")


def _messages(body: Mapping[str, Any], tokenizer: Tokenizer) -> list[int]:
    messages = body.get("messages")
    is_right = isinstance(messages, list) and messages and all(_is_message(message) for message in messages)
    if not is_right:
        raise RequestFault("messages must be a list of objects with a role and a content, both texts")
    if not tokenizer.chat_template:
        raise RequestFault("the tokenizer of this policy has no chat template; use /v1/completions", 404)
    assert isinstance(messages, list)
    return tokenizer.encode(tokenizer.render(messages))


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _stop_tokens(body: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Those of the request and, unless it says ignore_eos, the end token."""
    own = body.get("stop_token_ids") or []
    if not _are_ids(own):
        raise RequestFault(f"stop_token_ids must be a list of token ids, got {own!r}")
    end = [] if _Reader(body)("ignore_eos", bool, False) else [tokenizer.eos_id]
    return tuple(dict.fromkeys([*own, *end]))


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(id) is int and 0 <= id < 1 << 31 for id in value)


def _logprobs(value: Any) -> bool:
    if value is not None and (type(value) is not int or value != 0):
        raise RequestFault(
            f"logprobs must be 0, for the log-probability of each sampled token; got {value!r}: others are not kept"
        )
    return value is not None


# --- answers ----------------------------------------------------------------------------------------------------------


def answer(wanted: Wanted, ended: Sequence[Completion], tokenizer: Tokenizer) -> dict[str, Any]:
    """The whole answer, once all members have ended."""
    choices = []
    for completion in sorted(ended, key=lambda completion: completion.member):
        news = News(completion.member, 0, completion.token_ids, completion.logp, completion.version, completion)
        text = tokenizer.decode(completion.token_ids.tolist())
        choices.append(_choice(wanted, news, text, tokenizer.decode))
    num_prompt, num_new = len(wanted.request.token_ids), sum(len(completion.token_ids) for completion in ended)
    usage = {"prompt_tokens": num_prompt, "completion_tokens": num_new, "total_tokens": num_prompt + num_new}
    return _head(wanted, "chat.completion" if wanted.is_chat else "text_completion") | {
        "choices": choices,
        "usage": usage,
    }


def event(wanted: Wanted, news: News, text: str, decode: Callable[[Sequence[int]], str]) -> dict[str, Any]:
    """One event of a stream; `text` is what the new tokens add."""
    choice = _choice(wanted, news, text, decode)
    return _head(wanted, "chat.completion.chunk" if wanted.is_chat else "text_completion") | {"choices": [choice]}


def _head(wanted: Wanted, kind: str) -> dict[str, Any]:
    return {"id": wanted.request.id, "object": kind, "created": wanted.created, "model": wanted.model}


def _choice(wanted: Wanted, news: News, text: str, decode: Callable[[Sequence[int]], str]) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": news.member}
    if not wanted.is_chat:
        choice["text"] = text
    elif wanted.is_stream:
        choice["delta"] = {"content": text} | ({"role": "assistant"} if news.first == 0 else {})
    else:
        choice["message"] = {"role": "assistant", "content": text}
    choice["logprobs"] = _logprob_entry(wanted, news, decode) if wanted.has_logp else None
    if wanted.has_ids:
        choice["token_ids"] = news.token_ids.tolist()
        if news.first == 0:
            choice["prompt_token_ids"] = list(wanted.request.token_ids)
    choice |= _versions(news)
    ended = news.ended
    choice["finish_reason"] = None if ended is None else "error" if ended.failed else ended.stop_reason.value
    if ended is not None and ended.failed:
        choice["note"] = ended.failed
    return choice


def _logprob_entry(wanted: Wanted, news: News, decode: Callable[[Sequence[int]], str]) -> dict[str, Any]:
    ids, logp = news.token_ids.tolist(), news.logp.tolist()
    tokens = [f"token_id:{id}" if wanted.names_ids else decode([id]) for id in ids]
    if wanted.is_chat:
        pairs = zip(tokens, logp, strict=True)
        return {"content": [{"token": t, "logprob": v, "bytes": None, "top_logprobs": []} for t, v in pairs]}
    return {"tokens": tokens, "token_logprobs": logp, "top_logprobs": None, "text_offset": None}


def _versions(news: News) -> dict[str, Any]:
    """Spans of equal versions, places counted from the first of these tokens, and where tokens were forced in.

    A forced token was sampled by no weights; it is counted to the span around it.
    """
    spans: list[dict[str, Any]] = []
    versions = news.version.tolist()
    forced = [place for place, version in enumerate(versions) if version < 0]
    sampled = [version for version in versions if version >= 0]
    current = sampled[0] if sampled else 0
    for place, version in enumerate(versions):
        current = version if version >= 0 else current
        if spans and spans[-1]["version"] == str(current):
            spans[-1]["end"] = place + 1
        else:
            spans.append({"version": str(current), "start": place, "end": place + 1})
    return {"weight_versions": spans} | ({"forced": forced} if forced else {})
