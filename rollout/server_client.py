"""One OpenAI-compatible server as its clients see it: JSON in and out, and streams of server-sent events.

Every wait has a deadline, and the one of a stream measures silence and not work, so that a busy server is waited for
and a dead one noticed. Blocking, for a thread of its own per request; closing a stream from another thread ends it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

BUSY = (429, 503)
_RETRIED = (408, 500, 502, 504)
_LINE_BYTES = 1 << 26
_SENTENCE = 400


class ServerFault(Exception):
    """The server did not do what it was asked.

    Attributes:
        status: of its answer; 0 if there was none.
        may_pass: asking again may help.
        retry_seconds: what a busy server asks its clients to wait.
    """

    def __init__(self, message: str, *, status: int = 0, may_pass: bool = True, retry_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.may_pass = may_pass
        self.retry_seconds = retry_seconds

    @property
    def is_busy(self) -> bool:
        """It has too much to do now, which is no fault of the request."""
        return self.status in BUSY


class Stream:
    """An answer that comes event by event. `close` may be called from any thread, at any time."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._is_closed = False

    def attach(self, connection: http.client.HTTPConnection) -> None:
        """From now on `close` ends this connection."""
        self._socket = connection.sock
        if self._is_closed:
            self.close()

    def close(self) -> None:
        """End the connection, so that whoever reads it stops and the server forgets the request."""
        self._is_closed = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class Server:
    """A server.

    Args:
        url: http(s)://host:port.
        token: shown with every request; "" shows none.
        connect_seconds: time to open a connection.
        silence_seconds: time that the server may say nothing.
    """

    def __init__(self, url: str, token: str, *, connect_seconds: float, silence_seconds: float) -> None:
        parts = urlsplit(url)
        self.url = url.rstrip("/")
        self._is_secure = parts.scheme == "https"
        self._address = parts.hostname or "", parts.port or (443 if self._is_secure else 80)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._connect_seconds = connect_seconds
        self._silence_seconds = silence_seconds

    def get(self, path: str) -> Any:
        """The JSON of an answer. Raises ServerFault."""
        return self._ask("GET", path, None, {}, self._silence_seconds)

    def post(self, path: str, body: Any, seconds: float | None = None) -> Any:
        """POST `body` as JSON; gives the JSON of the answer, None if it is empty. Raises ServerFault."""
        data = json.dumps(body).encode()
        return self._ask("POST", path, data, {"Content-Type": "application/json"}, seconds or self._silence_seconds)

    def upload(
        self, path: str, pieces: Iterable[bytes | memoryview], length: int, media_type: str, seconds: float
    ) -> Any:
        """POST a long body piece by piece. Raises ServerFault."""
        headers = {"Content-Type": media_type, "Content-Length": str(length)}
        return self._ask("POST", path, pieces, headers, seconds)

    def events(self, path: str, body: Any, stream: Stream) -> Iterator[Mapping[str, Any]]:
        """POST `body` as JSON; every event of the answer, as JSON, until the server says [DONE].

        Raises ServerFault, also when the answer ends before that.
        """
        with self._connected() as connection:
            stream.attach(connection)
            headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
            answer = self._sent(connection, "POST", path, json.dumps(body).encode(), headers)
            with self._told():
                while line := answer.readline(_LINE_BYTES):
                    name, _, value = line.decode().strip().partition(":")
                    if name != "data":  # an empty line, or a comment that shows life
                        continue
                    if value.strip() == "[DONE]":
                        return
                    event = json.loads(value)
                    if "error" in event:
                        raise self._refusal(int(event["error"].get("code") or 500), value, {})
                    yield event
            raise ServerFault(f"{self.url} ended its answer in the middle")

    def _ask(self, method: str, path: str, body: Any, headers: Mapping[str, str], seconds: float) -> Any:
        with self._connected() as connection:
            assert connection.sock is not None
            connection.sock.settimeout(seconds)
            answer = self._sent(connection, method, path, body, headers)
            with self._told():
                text = answer.read()
                return json.loads(text) if text.strip() else None

    @contextlib.contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        kind = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
        connection = kind(*self._address, timeout=self._connect_seconds)
        try:
            with self._told():
                connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sock.settimeout(self._silence_seconds)
            yield connection
        finally:
            connection.close()

    def _sent(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        """The answer to a request, its body unread. A server that refuses answers before it has read all."""
        with self._told():
            try:
                connection.request(method, path, body, {**self._headers, **headers})
            except (BrokenPipeError, ConnectionResetError):
                if body is None:
                    raise
            answer = connection.getresponse()
            if answer.status != 200:
                told = answer.read(_LINE_BYTES).decode(errors="replace")
                raise self._refusal(answer.status, told, dict(answer.getheaders()))
        return answer

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong on the way, as ServerFault."""
        try:
            yield
        except TimeoutError as error:
            raise ServerFault(f"{self.url} said nothing for too long ({error})") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerFault(f"{self.url} cannot be reached ({error or type(error).__name__})") from error
        except ValueError as error:  # not JSON, or read from a connection that was closed meanwhile
            raise ServerFault(f"{self.url} answered what is no JSON ({error})") from error

    def _refusal(self, status: int, text: str, headers: Mapping[str, str]) -> ServerFault:
        may_pass = status in (*BUSY, *_RETRIED)
        wait = next((value for name, value in headers.items() if name.lower() == "retry-after"), "0")
        seconds = float(wait) if wait.replace(".", "", 1).isdigit() else 0.0
        message = f"{self.url} answered {status}: {_sentence_of(text)}"
        return ServerFault(message, status=status, may_pass=may_pass, retry_seconds=seconds)


def _sentence_of(text: str) -> str:
    """What an error body says, whichever of the usual forms it has."""
    try:
        told = json.loads(text)
    except ValueError:
        told = text
    for name in ("error", "message", "detail"):
        if isinstance(told, Mapping) and name in told:
            told = told[name]
    return " ".join(str(told).split())[:_SENTENCE]
