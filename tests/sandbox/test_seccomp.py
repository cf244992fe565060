"""The filter of system calls: by an interpreter of its own for every rule, and by real programs behind it."""

import errno
import json
import platform
import re
import struct
from pathlib import Path

import pytest

from sandbox import Program, Verdict
from sandbox.refused_calls import (
    ARCHITECTURES,
    EVERYWHERE,
    WITHOUT_NAMESPACES,
    WITHOUT_SIGNAL_SCOPE,
)
from sandbox.seccomp import filter_bytes

RULES = {
    "namespaces": EVERYWHERE,
    "landlock": EVERYWHERE + WITHOUT_NAMESPACES,
    "old landlock": EVERYWHERE + WITHOUT_NAMESPACES + WITHOUT_SIGNAL_SCOPE,
}
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003}
GETPID = {"x86_64": 39, "aarch64": 172}
ALLOWED, KILLED = "allowed", "killed"
EVERY = [(name, machine) for name in RULES for machine in ARCHITECTURES]


def judge(program, arch, number, *arguments):
    """What a filter says of one call: the kernel's instruction set as seccomp(2) and bpf(2) describe it."""
    data = struct.pack("=iIQ6Q", number, arch, 0, *(list(arguments) + [0] * 6)[:6])
    code = list(struct.iter_unpack("=HBBI", program))
    at, accumulator = 0, 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        if operation == 0x20:  # load a word
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif operation == 0x54:  # and
            accumulator &= value
        elif operation == 0x06:  # return
            action, reason = value & 0xFFFF0000, value & 0xFFFF
            return {0x7FFF0000: ALLOWED, 0x80000000: KILLED}.get(action) or errno.errorcode[reason]
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[operation]
            at += if_true if holds else if_false


def refused_numbers(rules, machine):
    column = ARCHITECTURES.index(machine)
    calls = {name: numbers[column] for group in rules.groups for name, numbers in group.calls.items()}
    return {name: number for name, number in calls.items() if number >= 0}


@pytest.mark.parametrize(("name", "machine"), EVERY)
def test_every_refused_call_is_refused_and_no_other(name, machine):
    rules, arch = RULES[name], AUDIT_ARCH[machine]
    program = filter_bytes(rules, machine)
    refused = set(refused_numbers(rules, machine).values())
    conditional = {condition.numbers[ARCHITECTURES.index(machine)] for condition in rules.conditions}
    for number in range(600):
        answer = judge(program, arch, number)
        if number in refused:
            assert answer == "EPERM", number
        elif number == 435:
            assert answer == "ENOSYS"
        elif number not in conditional:
            assert answer == ALLOWED, number


@pytest.mark.parametrize(("name", "machine"), EVERY)
def test_a_condition_refuses_what_it_names_and_nothing_else(name, machine):
    rules, arch = RULES[name], AUDIT_ARCH[machine]
    program = filter_bytes(rules, machine)
    refused = set(refused_numbers(rules, machine).values())
    for condition in rules.conditions:
        number = condition.numbers[ARCHITECTURES.index(machine)]
        if number in refused:
            continue

        def answer(value, number=number, condition=condition):
            return judge(program, arch, number, *[1] * condition.argument, value)

        bits = [1 << bit for bit in range(32) if condition.value >> bit & 1]
        refusing, allowing = {
            "is": ([condition.value, condition.value | 1 << 40], [0x7777]),
            "is not": ([condition.value + 1, 16], [condition.value]),
            "has any of": (bits, [17]),
            "has all of": ([condition.value, condition.value | 0x100], bits),
        }[condition.test]
        assert all(answer(value) == "EPERM" for value in refusing), condition
        if condition.call not in ("mmap", "socketpair"):  # two conditions share their arguments; told apart below
            assert all(answer(value) == ALLOWED for value in allowing), condition


def test_what_ordinary_programs_map_and_pair_is_allowed():
    program = filter_bytes(RULES["landlock"], "x86_64")
    private_anonymous, shared_file, shared_anonymous = 0x22, 0x01, 0x21
    answers = [judge(program, AUDIT_ARCH["x86_64"], 9, 0, 4096, 3, flags) for flags in
               (private_anonymous, shared_file, shared_anonymous, private_anonymous | 0x40000)]  # fmt: skip
    assert answers == [ALLOWED, ALLOWED, "EPERM", "EPERM"]
    stream, datagram, raw, packets, flags = 1, 2, 3, 5, 0o2004000
    kinds = [judge(program, AUDIT_ARCH["x86_64"], 53, 1, kind | flags) for kind in (stream, datagram, raw, packets)]
    assert kinds == [ALLOWED, "EPERM", "EPERM", ALLOWED]


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_calls_of_another_architecture_kill(machine):
    program = filter_bytes(EVERYWHERE, machine)
    for arch in AUDIT_ARCH.values():
        expected = ALLOWED if arch == AUDIT_ARCH[machine] else KILLED
        assert judge(program, arch, GETPID[machine]) == expected
    if machine == "x86_64":
        assert judge(program, AUDIT_ARCH[machine], 0x40000000 + 39) == KILLED
    assert filter_bytes(EVERYWHERE, "riscv64") == b""


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_numbers_are_those_of_the_kernel(machine):
    if not HEADERS[machine].exists():
        pytest.skip("the kernel's headers are not installed (linux-libc-dev)")
    # The generic table spells a few by a word size: __NR3264_fcntl.
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text()))
    column = ARCHITECTURES.index(machine)
    rules = RULES["old landlock"]
    ours = refused_numbers(rules, machine)
    ours |= {condition.call: condition.numbers[column] for condition in rules.conditions}
    wrong = {name: number for name, number in ours.items() if name in known and int(known[name]) != number}
    assert not wrong
    absent = {name for group in rules.groups for name, numbers in group.calls.items() if numbers[column] < 0}
    assert not absent & set(known)
    assert len(set(ours) & set(known)) > 100


def test_every_refused_call_fails_in_a_real_program(box):
    """Arguments of -1 would give EFAULT, EBADF or EINVAL in most of them if the kernel ever looked at them."""
    if platform.machine() not in ARCHITECTURES:
        pytest.skip("no filter for this architecture")
    numbers = refused_numbers(EVERYWHERE, platform.machine())
    source = (
        "import ctypes, errno, json, sys\n"
        "call = ctypes.CDLL(None, use_errno=True).syscall\n"
        "call.restype = ctypes.c_long\n"
        "def answer(number):\n"
        "    ctypes.set_errno(0)\n"
        "    done = call(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)\n"
        "    return errno.errorcode[ctypes.get_errno()] if done == -1 else 'done'\n"
        "print(json.dumps({name: answer(number) for name, number in json.load(sys.stdin).items()}))"
    )
    execution = box.run(Program(source, stdin=json.dumps(numbers)))
    assert execution.verdict is Verdict.OK, execution
    answers = json.loads(execution.stdout)
    assert len(answers) > 80
    del answers["mount"]  # a cell needs it; test_walls shows that a program lacks the capability for it
    assert {name: answer for name, answer in answers.items() if answer != "EPERM"} == {}


CALL = """
import ctypes, errno, mmap, os, signal, socket
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = libc.mmap.restype = ctypes.c_long

def answer(number, *arguments):
    done = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))
    return errno.errorcode[ctypes.get_errno()] if done == -1 else "done"

def killed_by(attempt):
    child = os.fork()
    if child == 0:
        attempt()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def run(code):
    page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
    page.write(code)
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""

X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers and machine code of x86_64")


@X86
@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("[answer(56, 17 | flag) for flag in (1 << 17, *(1 << bit for bit in range(25, 31)))]", ["EPERM"] * 7),
        ("answer(435, 0, 0)", "ENOSYS"),
        ("[answer(41, family, 1, 0) for family in (2, 10, 16, 17, 38, 40)]", ["EPERM"] * 6),
        ("[answer(53, family, 1, 0) for family in (2, 30)]", ["EPERM"] * 2),
        ("[answer(16, 0, request, 0) for request in (0x5412, 0x541C)]", ["EPERM"] * 2),
        ("[answer(157, option, 0, 0, 0) for option in (22, 35, 62, 67)]", ["EPERM"] * 4),
        ("answer(72, os.pipe()[1], 1031, 1 << 20)", "EPERM"),
        ("[answer(9, 0, 4096, 3, flags, -1, 0) for flags in (0x21, 0x40022)]", ["EPERM"] * 2),
        ("answer(28, 0, 0, 21)", "EPERM"),
        ("killed_by(lambda: answer(0x40000000 + 39))", -31),
        # mov eax, 20 (getpid of i386); int 0x80; ret. A kernel without the i386 table answers with SIGSEGV.
        (r"killed_by(lambda: run(b'\xb8\x14\0\0\0\xcd\x80\xc3')) in (-31, -11)", True),
        # mov eax, 39 (getpid); syscall; ret: the same way of calling is no crime in itself.
        (r"killed_by(lambda: run(b'\xb8\x27\0\0\0\x0f\x05\xc3'))", 0),
    ],
)
def test_arguments_are_looked_at_in_a_real_program(box, expression, expected):
    execution = box.run(Program(f"{CALL}\nimport json\nprint(json.dumps({expression}))"))
    assert execution.verdict is Verdict.OK, execution
    assert json.loads(execution.stdout) == expected


def test_ordinary_programs_do_not_notice(box):
    source = """
import asyncio, mmap, os, queue, signal, socket, sqlite3, subprocess, sys, tempfile, threading
import multiprocessing
done = []
done.append(subprocess.run([sys.executable, "-S", "-c", "print(6 * 7)"], capture_output=True).stdout)
thread = threading.Thread(target=done.append, args=("thread",)); thread.start(); thread.join()
left, right = socket.socketpair(); left.send(b"pair"); done.append(right.recv(9))
with socket.socket(socket.AF_UNIX) as server:
    server.bind("path"); server.listen(1)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("path"); client.send(b"unix"); done.append(server.accept()[0].recv(9))
with tempfile.TemporaryFile() as file:
    file.truncate(4096); page = mmap.mmap(file.fileno(), 4096); page[:4] = b"file"; done.append(page[:4])
database = sqlite3.connect("database"); database.execute("create table t (x)")
database.execute("insert into t values (1)"); database.commit(); done.append(database.execute("select x from t").fetchall())
context = multiprocessing.get_context("fork")
mine, theirs = context.Pipe(); child = context.Process(target=theirs.send, args=("fork",))
child.start(); done.append(mine.recv()); child.join()
async def sleep(): return await (await asyncio.create_subprocess_exec("/bin/true")).wait()
done.append(asyncio.run(sleep()))
signal.signal(signal.SIGUSR1, lambda *_: done.append("signal")); os.kill(os.getpid(), signal.SIGUSR1)
print(done)
"""  # noqa: E501
    execution = box.run(Program(source))
    expected = [b"42\n", "thread", b"pair", b"unix", b"file", [(1,)], "fork", 0, "signal"]
    assert execution.stdout.decode().strip() == str(expected), execution
