"""What goes over the wire comes out as it went in, and garbage is refused in words and never crashes."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox import Execution, Limits, Program, SandboxConfig, Verdict
from sandbox.wire import (
    WireError,
    from_json,
    job_bytes,
    read_execution,
    read_limits,
    read_object,
    read_program,
    to_json,
)

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)  # lone surrogates too
NAMES = st.text(st.characters(exclude_characters="/.\0"), min_size=1, max_size=8).filter(lambda name: name != "main.py")


@given(
    source=ANY_TEXT,
    stdin=st.binary(max_size=40) | ANY_TEXT,
    files=st.dictionaries(NAMES, st.binary(max_size=20), max_size=3),
    cpu_seconds=st.floats(0.1, 10),
)
def test_a_job_survives_the_wire(source, stdin, files, cpu_seconds):
    program, limits = Program(source, stdin=stdin, files=files), Limits(cpu_seconds=cpu_seconds, num_files=9)
    received = read_object(job_bytes(program, limits), ("program", "limits"))
    back = read_program(received["program"])
    assert (back.source_bytes, back.stdin_bytes, back.files) == (program.source_bytes, program.stdin_bytes, files)
    assert read_limits(received["limits"], Limits(num_files=3)) == limits


@given(
    st.builds(
        Execution,
        verdict=st.sampled_from(Verdict),
        stdout=st.binary(max_size=60) | ANY_TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")),
        stderr=st.binary(max_size=60),
        exit_code=st.none() | st.integers(0, 255),
        signal=st.none() | st.integers(1, 64),
        cpu_s=st.floats(0, 1e6),
        wall_s=st.floats(0, 1e6),
        memory_bytes=st.integers(0, 1 << 60),
    )
)
def test_an_execution_survives_the_wire(execution):
    body = json.dumps(to_json(execution)).encode()
    assert read_execution(b"\n\n" + body) == execution, "line feeds before it are signs of life"


def test_text_stays_readable_and_other_bytes_are_base64():
    execution = Execution(Verdict.OK, "né\n".encode(), b"\xff\x00", 0, None, 0.1, 0.2, 3)
    assert to_json(execution) | {} == {
        "verdict": "OK",
        "stdout": "né\n",
        "stderr": {"base64": "/wA="},
        "exit_code": 0,
        "signal": None,
        "cpu_s": 0.1,
        "wall_s": 0.2,
        "memory_bytes": 3,
    }


def test_a_newer_service_may_tell_more_and_an_older_one_not_less():
    told = to_json(Execution(Verdict.OK, b"", b"", 0, None, 0.1, 0.2, 3))
    assert read_execution(json.dumps(told | {"later_field": 1}).encode()).exit_code == 0
    del told["verdict"]
    with pytest.raises(WireError, match="^execution needs verdict$"):
        read_execution(json.dumps(told).encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["source", "stdin", "files", "language", "cpu_seconds", "memory_bytes", "base64", "verdict"])


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(FIELDS, JSON | st.dictionaries(FIELDS, JSON, max_size=2), max_size=4))
def test_made_up_json_is_a_program_or_a_wire_error(value):
    for read in (read_program, lambda value: read_limits(value, Limits())):
        try:
            read(value)
        except WireError as error:
            assert str(error)
    with pytest.raises(WireError):
        read_execution(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"\xff\xfe", "the body must be JSON"),
        (b"", "the body must be JSON"),
        (b"[" * 100_000, "the body must be JSON"),
        (b'{"program": ' + b"9" * 5000 + b"}", "the body must be JSON"),
        (b"[1]", "the body must be a JSON object, got list"),
        (b'{"programm": {}}', "the body has no field 'programm'; it has program, limits"),
    ],
)
def test_a_body_that_is_no_object_is_refused(body, told):
    with pytest.raises(WireError, match=told):
        read_object(body, ("program", "limits"))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "program must be an object, got null"),
        ({}, "program needs source"),
        ({"source": 5}, "program.source must be str, got int '5'"),
        ({"source": "", "stdin": 5}, 'program.stdin must be a string or {"base64": "..."}, got int'),
        ({"source": "", "stdin": {"base64": "?"}}, "program.stdin.base64 cannot be decoded"),
        ({"source": "", "files": {"a": 1}}, r"program.files['a'] must be a string or"),
        ({"source": "", "files": {"../a": ""}}, "a file's path must stay inside the working directory, got '../a'"),
        ({"source": "", "language": "cobol"}, "language must be one of"),
    ],
)
def test_a_program_that_is_none_is_refused(value, told):
    with pytest.raises(WireError) as error:
        read_program(value)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"cpu_seconds": True}, "limits.cpu_seconds must be float, got bool"),
        ({"cpu_seconds": 10**400}, "limits.cpu_seconds must be float"),
        ({"cpu_seconds": float("nan")}, "limits.cpu_seconds must be positive and finite"),
        ({"num_files": 1.5}, "limits.num_files must be int, got float '1.5'"),
        ({"memory": 1}, "limits has no field 'memory'; it has cpu_seconds"),
    ],
)
def test_limits_that_are_none_are_refused(value, told):
    with pytest.raises(WireError) as error:
        read_limits(value, Limits())
    assert told in str(error.value)


def test_a_configuration_of_nested_settings_is_read_too():
    config = SandboxConfig(size=3, limits=Limits(cpu_seconds=1.5))
    assert from_json(SandboxConfig, json.loads(json.dumps(to_json(config))), "sandbox") == config
    with pytest.raises(WireError, match=r"^sandbox.service has no field 'prot'; it has host, port, "):
        from_json(SandboxConfig, {"service": {"prot": 1}}, "sandbox")
