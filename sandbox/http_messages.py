"""HTTP/1.1 as our servers and their clients speak it: heads from bytes and bytes from heads. Does no input or output.

The standard library's server gives a thread to each connection and its client reads with one fixed time-out; this is
the little that an asyncio server and client need instead. Where the standard leaves a choice, the strict one is
taken: lines end in CR LF, a body has one Content-Length, headers do not continue on the next line.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

END_OF_HEAD = b"\r\n\r\n"
MAX_HEAD_BYTES = 16384
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

_REQUEST_LINE = re.compile(r"([A-Z]{1,16}) (/[!-~]{0,1023}) HTTP/1\.1")
_STATUS_LINE = re.compile(r"HTTP/1\.1 ([1-5][0-9]{2}) [ -~]{0,256}")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}):[ \t]*([ -~\t]*)")


class HttpFault(Exception):
    """The other side did not keep to the protocol, or asks for what it cannot have. `status` is the answer to it."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass(frozen=True)
class RequestHead:
    """The first lines of a request; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class ResponseHead:
    """The first lines of a response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]


def parse_request(head: bytes) -> RequestHead:
    """Read a request's head, END_OF_HEAD included. Raises HttpFault with the status to answer."""
    first, headers = _lines(head)
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise HttpFault(400, f"the first line must read METHOD /path HTTP/1.1, got {first[:80]!r}")
    return RequestHead(match[1], match[2], headers)


def parse_response(head: bytes) -> ResponseHead:
    """Read a response's head, END_OF_HEAD included. Raises HttpFault."""
    first, headers = _lines(head)
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        raise HttpFault(502, f"the first line must be an HTTP/1.1 status, got {first[:80]!r}")
    return ResponseHead(int(match[1]), headers)


def body_length(head: RequestHead | ResponseHead, most: int) -> int:
    """How many bytes of body follow. Raises HttpFault when that is unclear or more than `most`."""
    if "transfer-encoding" in head.headers:
        raise HttpFault(411, "a body must come whole, with its Content-Length and no Transfer-Encoding")
    text = head.headers.get("content-length", "0")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise HttpFault(400, f"Content-Length must be a number, got {text[:80]!r}")
    if int(text) > most:
        raise HttpFault(413, f"a body may have {most} bytes, got {text}")
    return int(text)


def check_token(head: RequestHead, token: bytes) -> None:
    """Raise HttpFault 401 unless the request shows the token."""
    scheme, _, shown = head.headers.get("authorization", "").partition(" ")
    # Compared in constant time: how long a refusal takes says nothing of how much of a guess was right.
    is_right = hmac.compare_digest(shown.strip().encode(), token)
    if scheme.lower() != "bearer" or not is_right:
        raise HttpFault(401, "the header Authorization must read: Bearer <the token>", WWW_Authenticate="Bearer")


def request_bytes(method: str, path: str, host: str, token: str, body: bytes = b"") -> bytes:
    """A whole request."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {token}"]
    lines += [f"Content-Length: {len(body)}", "Content-Type: application/json"]
    return "\r\n".join(lines).encode() + END_OF_HEAD + body


def response_bytes(status: int, body: bytes, headers: Mapping[str, str] | None = None, *, keep: bool = True) -> bytes:
    """A whole response; without `keep` it announces the end of the connection."""
    more = {"Content-Length": str(len(body)), **(headers or {})}
    return _response_head(status, more, keep) + body


def chunked_head(content_type: str, *, keep: bool = True) -> bytes:
    """The head of a response that follows in chunks, status 200."""
    return _response_head(200, {"Transfer-Encoding": "chunked", "Content-Type": content_type}, keep)


def chunk(data: bytes) -> bytes:
    """One chunk of such a response; LAST_CHUNK ends it."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def fault_bytes(fault: HttpFault, *, keep: bool = False) -> bytes:
    """The response that tells of a fault: {"error": one sentence}."""
    headers = {"Content-Type": "application/json", **fault.headers}
    return response_bytes(fault.status, json_bytes({"error": str(fault)}), headers, keep=keep)


def json_bytes(value: Any) -> bytes:
    """Compact JSON and a line feed, in ASCII: even a lone surrogate of a text survives as its escape."""
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def _response_head(status: int, headers: Mapping[str, str], keep: bool) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    if not keep:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode("ascii") + END_OF_HEAD


def _lines(head: bytes) -> tuple[str, dict[str, str]]:
    """The first line, and the headers by lower-case name."""
    first, *rest = head.removesuffix(END_OF_HEAD).decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in rest:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise HttpFault(400, f"a header must read Name: value, got {line[:80]!r}")
        name = match[1].lower()
        if name in headers and name in ("content-length", "transfer-encoding", "authorization", "host"):
            raise HttpFault(400, f"the header {name} must come once")
        headers[name] = match[2].strip()
    return first, headers
