"""The service as any HTTP client sees it: answers, refusals, and clients that behave badly."""

import asyncio
import http.client
import json
import socket

import pytest

from sandbox import Program
from sandbox.http_connection import HttpConnection
from sandbox.http_server import HttpServer, bound_socket
from sandbox.service_config import ServiceConfig

LORIS = 12


@pytest.fixture
def ask(service):
    """ask(method, path, body, **headers) -> status, headers, body; the token is shown unless headers say otherwise."""

    def request(method, path, body=None, *, to=service, **headers):
        connection = http.client.HTTPConnection(*to.address, timeout=60)
        shown = {"Authorization": f"Bearer {to.token}"} | {name.replace("_", "-"): v for name, v in headers.items()}
        connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body), shown)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), content

    return request


def test_a_program_is_run(ask):
    program = {"source": "print(input()[::-1], open('a').read())", "stdin": "né", "files": {"a": {"base64": "YQ=="}}}
    status, headers, body = ask("POST", "/run", {"program": program})
    execution = json.loads(body)
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert (execution["verdict"], execution["stdout"], execution["exit_code"]) == ("OK", "én a\n", 0)


def test_limits_of_the_request_count_and_others_are_the_services_own(ask):
    source = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\nwhile True: pass"
    request = {"program": {"source": source}, "limits": {"cpu_seconds": 0.3, "num_files": 17}}
    execution = json.loads(ask("POST", "/run", request)[2])
    assert execution["verdict"] == "TLE"
    assert execution["cpu_s"] < 1.0, "the service's own limit is 1 s"


def test_a_batch_comes_back_line_by_line_as_its_programs_end(ask):
    sources = ["import time; time.sleep(4); print('slow')", "print('fast')", "1 / 0", "x = ("]
    status, headers, body = ask("POST", "/batch", {"programs": [{"source": source} for source in sources]})
    lines = [json.loads(line) for line in body.splitlines() if line]
    assert (status, headers["Transfer-Encoding"]) == (200, "chunked")
    assert lines[-1]["index"] == 0, "the slowest is last"
    verdicts = {line["index"]: line["execution"]["verdict"] for line in lines}
    assert verdicts == {0: "OK", 1: "OK", 2: "RE", 3: "CE"}


def test_health_and_metrics_count(ask):
    before = json.loads(ask("GET", "/health")[2])
    ask("POST", "/run", {"program": {"source": "1 / 0"}})
    after = json.loads(ask("GET", "/health")[2])
    assert (after["status"], after["tier"], after["cells"], after["running"], after["queued"]) == (
        "ok", "bubblewrap", 2, 0, 0,
    )  # fmt: skip
    assert after["verdicts"]["RE"] == before["verdicts"]["RE"] + 1
    lines = ask("GET", "/metrics")[2].decode().splitlines()
    assert f'cispo_sandbox_programs_total{{verdict="RE"}} {after["verdicts"]["RE"]}' in lines
    assert "cispo_sandbox_cells 2" in lines


@pytest.mark.parametrize("shown", ["Bearer wrong", "Bearer ", "", "Basic {token}", "Bearer {token}x", "{token}"])
def test_without_the_token_nothing_is_told(ask, service, shown):
    for method, path in (("GET", "/health"), ("POST", "/run"), ("GET", "/nowhere")):
        status, headers, body = ask(method, path, Authorization=shown.format(token=service.token))
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert service.token.encode() not in body


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "told"),
    [
        ("GET", "/nowhere", None, 404, "there is no /nowhere; there are /health"),
        ("GET", "/run", None, 405, "/run takes POST"),
        ("POST", "/run", b"{", 400, "the body must be JSON"),
        ("POST", "/run", b"\x00\xff", 400, "the body must be JSON"),
        ("POST", "/run", b"[" * 200_000, 400, "the body must be JSON"),
        ("POST", "/run", {"source": "1"}, 400, "the body has no field 'source'; it has program, limits"),
        ("POST", "/run", {"program": {"source": "", "language": "x"}}, 400, "language must be one of"),
        ("POST", "/run", {"program": {"source": ""}, "limits": {"wall_seconds": 1e9}}, 400, "may be at most 300 here"),
        ("POST", "/run", {"program": {"source": ""}, "limits": {"memory_bytes": 1 << 50}}, 400, "limits.memory_bytes"),
        ("POST", "/batch", {"programs": []}, 400, "programs must be a list with at least one"),
        ("POST", "/batch", {"programs": [{"source": 1}]}, 400, "programs[0].source must be str"),
        ("POST", "/batch", {"programs": [{"source": ""}] * 1100}, 413, "a batch may have 1026 programs, got 1100"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(ask, method, path, body, status, told):
    answered, _, content = ask(method, path, body)
    assert answered == status
    assert told in json.loads(content)["error"]


def raw(service, data, *, shut=False):
    """Everything that the service answers to these bytes before it closes the connection."""
    with socket.create_connection(service.address, timeout=60) as connection:
        connection.sendall(data)
        if shut:
            connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)


def authorised(service, *lines):
    return "\r\n".join([*lines, f"Authorization: Bearer {service.token}", "", ""]).encode()


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["POST /run HTTP/1.1", "Content-Length: -1"], 400),
        (["POST /run HTTP/1.1", "Content-Length: 5", "Content-Length: 6"], 400),
        (["POST /run HTTP/1.1", "Transfer-Encoding: chunked"], 411),
        (["POST /run HTTP/1.1", "Content-Length: 67108865"], 413),
        (["POST /run HTTP/1.0"], 400),
        (["hello"], 400),
        (["GET /health HTTP/1.1", "no colon"], 400),
        (["GET /health HTTP/1.1", "X: " + "y" * 20_000], 431),
        (["GET /health HTTP/1.1", "X: " + "y" * 300_000], 431),
    ],
)
def test_what_is_not_http_is_refused_and_the_connection_closed(service, lines, status):
    assert raw(service, authorised(service, *lines)).startswith(b"HTTP/1.1 %d " % status)


def test_an_oversized_body_is_refused_and_its_sender_gets_to_read_so(serve, ask):
    small = serve(max_request_bytes=100_000)
    status, _, body = ask("POST", "/run", b"x" * 5_000_000, to=small)
    assert status == 413
    assert json.loads(body)["error"] == "a body may have 100000 bytes, got 5000000"


def test_a_client_that_waits_to_be_told_to_send_its_body_is_told(service):
    body = b'{"program": {"source": "print(7)"}}'
    head = authorised(
        service, "POST /run HTTP/1.1", f"Content-Length: {len(body)}", "Expect: 100-continue", "Connection: close"
    )
    with socket.create_connection(service.address, timeout=60) as connection:
        connection.sendall(head)
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert b'"stdout":"7\\n"' in connection.makefile("rb").read()


def test_requests_may_come_before_the_answers_to_earlier_ones(service):
    bodies = [json.dumps({"program": {"source": f"print({n})"}}).encode() for n in range(3)]
    heads = [authorised(service, "POST /run HTTP/1.1", f"Content-Length: {len(body)}") for body in bodies]
    last = authorised(service, "GET /health HTTP/1.1", "Connection: close")
    answer = raw(service, b"".join(head + body for head, body in zip(heads, bodies, strict=True)) + last)
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    assert [answer.index(b'"stdout":"%d\\n"' % n) for n in range(3)] == sorted(
        answer.index(b'"stdout":"%d\\n"' % n) for n in range(3)
    )


def test_a_slow_program_shows_signs_of_life(serve):
    lively = serve(heartbeat_seconds=0.2)
    body = b'{"program": {"source": "import time; time.sleep(1); print(7)"}}'
    head = authorised(lively, "POST /run HTTP/1.1", f"Content-Length: {len(body)}", "Connection: close")
    answer = raw(lively, head + body)
    assert answer.count(b"1\r\n\n\r\n") >= 2, "chunks of one line feed"
    assert b'"stdout":"7\\n"' in answer


def was_dropped(connection):
    """By a reset, or by an end where nothing of ours was left unread."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_clients_that_never_finish_a_request_keep_nobody_out(serve, ask):
    guarded = serve(max_connections=LORIS - 4)
    slow = [socket.create_connection(guarded.address, timeout=60) for _ in range(LORIS)]
    for connection in slow:
        connection.sendall(b"POST /run HTTP/1.1\r\nX-Slow: ")
    for connection in slow[LORIS // 2 :]:
        connection.sendall(b"a")
    assert ask("POST", "/run", {"program": {"source": "print(1)"}}, to=guarded)[0] == 200
    assert all(was_dropped(oldest) for oldest in slow[:3])
    for connection in slow:
        connection.close()


def test_a_request_that_dribbles_in_is_given_up(serve):
    hasty = serve(request_seconds=0.5)
    with socket.create_connection(hasty.address, timeout=60) as connection:
        connection.sendall(authorised(hasty, "POST /run HTTP/1.1", "Content-Length: 1000") + b"{")
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
    assert raw(hasty, b"POST /run HT") == b"", "without a head there is nothing to answer"


def test_an_idle_connection_is_closed_whatever_its_last_request_was(serve):
    """A second request could come within a minute, but a connection that was answered has idle_seconds only."""
    impatient = serve(idle_seconds=0.5)
    with socket.create_connection(impatient.address, timeout=20) as connection:
        connection.sendall(authorised(impatient, "GET /health HTTP/1.1"))
        received = b""
        while data := connection.recv(65536):
            received += data
    assert received.startswith(b"HTTP/1.1 200 ")


def test_the_end_of_a_connection_in_a_request_is_no_trouble(service, ask):
    for data in (b"", b"POST", authorised(service, "POST /run HTTP/1.1", "Content-Length: 9") + b"{"):
        assert raw(service, data, shut=True) == b""
    assert ask("GET", "/health")[0] == 200


def test_a_full_line_is_said_to_be_full_and_when_to_come_again(serve, ask, eventually):
    narrow = serve(size=1, max_queue=1)
    sleepers = []
    for _ in range(2):
        connection = http.client.HTTPConnection(*narrow.address, timeout=60)
        body = json.dumps({"program": {"source": "import time; time.sleep(4)"}})
        connection.request("POST", "/run", body, {"Authorization": f"Bearer {narrow.token}"})
        sleepers.append(connection)
    eventually(lambda: json.loads(ask("GET", "/health", to=narrow)[2])["queued"] == 1)
    status, headers, body = ask("POST", "/run", {"program": {"source": ""}}, to=narrow)
    assert (status, headers["Retry-After"]) == (429, "1")
    assert "2 of 2 programs are there" in json.loads(body)["error"]
    for connection in sleepers:
        connection.close()


def test_a_client_that_leaves_takes_its_programs_along(serve, ask, eventually):
    """Those that wait leave the line; the one that runs is killed long before its limit."""
    lonely = serve(size=1)

    def health():
        return json.loads(ask("GET", "/health", to=lonely)[2])

    body = json.dumps({
        "programs": [{"source": "import time; time.sleep(250)"}] * 5,
        "limits": {"wall_seconds": 280},
    }).encode()  # fmt: skip
    connection = socket.create_connection(lonely.address, timeout=60)
    connection.sendall(authorised(lonely, "POST /batch HTTP/1.1", f"Content-Length: {len(body)}") + body)
    eventually(lambda: health()["queued"] == 4)
    connection.close()
    eventually(lambda: health()["cancelled"] == 5)
    assert (health()["running"], health()["queued"]) == (0, 0)
    with lonely.pool() as pool:
        # Far less than the 250 s that the killed program would have gone on to sleep in the only cell.
        assert pool.submit(Program("print(2)")).result(timeout=60).stdout == b"2\n"


class Blank(HttpConnection):
    """Answers GET /n with n bytes."""

    _is_closing = False

    def _admit(self, head):
        return 0

    async def _fulfil(self, head, body):
        await self._send_whole(b"x" * int(head.path[1:]))


@pytest.mark.parametrize("header", [b"", b"Connection: close\r\n"], ids=["kept", "closed"])
def test_the_last_answer_reaches_a_client_that_reads_slowly(header):
    """Small buffers stand for a network that is slower than the answer is written."""
    size = 60_000

    async def received():
        config = ServiceConfig(max_connections=9)
        server = HttpServer(lambda reader, writer: Blank(reader, writer, config), config, "the test")
        door = bound_socket("127.0.0.1", 0)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await server.listen(door)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            client.connect(door.getsockname()[:2])
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, b"GET /%d HTTP/1.1\r\nHost: x\r\n" % size + header + b"\r\n")
            await asyncio.sleep(0.1)
            data = b""
            async with asyncio.timeout(20):
                while len(data.partition(b"\r\n\r\n")[2]) < size and (more := await loop.sock_recv(client, 65536)):
                    data += more
        await server.drain(asyncio.Event())
        return len(data.partition(b"\r\n\r\n")[2])

    assert asyncio.run(received()) == size


def test_a_connection_that_ends_as_the_server_stops_is_waited_for_all_the_same():
    async def stop():
        server = HttpServer(None, ServiceConfig(), "the test")
        await server.listen(bound_socket("127.0.0.1", 0))

        async def brief():
            server._tasks.discard(asyncio.current_task())

        server._tasks.add(asyncio.create_task(brief()))
        await server.drain(asyncio.Event())

    asyncio.run(stop())
