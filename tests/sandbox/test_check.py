"""`cispo sandbox check`, what it knows of a machine, and canaries that sing where there is no wall."""

import pytest

from launch.cli import main
from sandbox import IsolationError, Sandbox, SandboxConfig
from sandbox.capabilities import cgroups, core_dumps, facts, forbidding_switches, why_not
from sandbox.check_report import check_report, try_tier
from sandbox.self_test import check_isolation, try_canaries


@pytest.fixture(scope="module")
def report():
    return check_report(SandboxConfig())


def test_every_canary_is_held_by_every_tier(report):
    text, holds = report
    assert holds
    rows = [line.split() for line in text.splitlines() if line.endswith("held")]
    assert len(rows) >= 20
    assert all(row[-2:] == ["held", "held"] for row in rows)
    assert "GOT OUT" not in text
    assert "not run" not in text


def test_the_report_tells_what_the_machine_can_do(report):
    text, _ = report
    for name in (
        "kernel",
        "user namespaces",
        "bubblewrap",
        "seccomp",
        "Landlock",
        "cgroup v2",
        "/proc",
        "core dumps",
        "cpp",
    ):
        assert any(line.startswith(f"  {name} ") for line in text.splitlines()), name
    assert "-> bubblewrap    holds" in text
    assert "unsafe        no wall" in text


def test_the_canaries_get_out_where_there_is_no_wall():
    """As many as a plain process can: those that are left need a kernel or a user that lets them."""
    got_out = {name for name, out in try_canaries(Sandbox(isolation="unsafe").run, "unsafe").items() if out}
    assert got_out >= {
        "reach the network", "read a file outside", "list a folder outside", "send a datagram",
        "reach an abstract socket outside", "reach a socket in a file outside", "write to the system",
        "change rights of a file outside", "see other processes", "signal a process outside",
        "read the environment of another", "hold capabilities",
        "hide memory from those who count", "open doors of the kernel", "call the kernel by another table",
        "leave a process behind",
    }  # fmt: skip


def test_one_canary_that_gets_out_is_enough_to_refuse():
    with pytest.raises(IsolationError, match=r"inside landlock a program could reach the network, read a file"):
        check_isolation(Sandbox(isolation="unsafe").run, "landlock", "bwrap")


def test_the_status_is_that_of_the_configured_tier(capsys, monkeypatch):
    assert main(["sandbox", "check", "sandbox.isolation=landlock"]) == 0
    assert "-> landlock      holds" in capsys.readouterr().out
    assert main(["sandbox", "check", "sandbox.bwrap=/nonexistent/bwrap"]) == 1
    said = capsys.readouterr().out
    assert "-> bubblewrap    does not hold" in said
    assert "apt-get install bubblewrap" in said
    assert "   landlock      holds" in said
    monkeypatch.setattr("sandbox.check_report.TIERS", ("landlock",))
    assert main(["sandbox", "check", "sandbox.isolation=unsafe"]) == 1


def test_a_tier_that_fails_is_never_replaced_by_another():
    assert try_tier("bubblewrap", "/bin/false").problem
    with pytest.raises(IsolationError):
        Sandbox.check("/bin/false")


@pytest.mark.parametrize(
    ("switch", "value", "remedy"),
    [
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor profile"),
    ],
)
def test_the_switch_that_forbids_namespaces_is_named(tmp_path, switch, value, remedy):
    (tmp_path / switch).parent.mkdir()
    (tmp_path / switch).write_text(value + "\n")
    ((name, told),) = forbidding_switches(tmp_path)
    assert name == f"{switch.replace('/', '.')} is {value}"
    assert remedy in told
    (tmp_path / switch).write_text("1" if value == "0" else "0")
    assert list(forbidding_switches(tmp_path)) == []


def test_a_switch_is_the_reason_where_namespaces_cannot_be_made(monkeypatch):
    monkeypatch.setattr("sandbox.capabilities._can_make_namespaces", lambda: False)
    monkeypatch.setattr(
        "sandbox.capabilities.forbidding_switches", lambda: iter([("user.x is 0", "sysctl -w user.x=1")])
    )
    assert "because user.x is 0, which forbids user namespaces; an administrator can run: sysctl -w user.x=1" in str(
        why_not("bubblewrap", "/bin/true")
    )
    found = {fact.name: fact for fact in facts("/bin/true")}
    assert found["user namespaces"].ask == "sysctl -w user.x=1"


def test_a_delegated_cgroup_is_found(tmp_path):
    own, ours = tmp_path / "own", tmp_path / "user.slice" / "ours"
    own.write_text("0::/user.slice/ours\n")
    assert cgroups(tmp_path, own).ask
    ours.mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (ours / "cgroup.controllers").write_text("cpu\n")
    assert "memory and pids not delegated" in cgroups(tmp_path, own).value
    (ours / "cgroup.controllers").write_text("memory pids\n")
    assert cgroups(tmp_path, own).value == f"delegated at {ours}"


def test_a_core_pattern_that_starts_a_program_is_told(tmp_path):
    pattern = tmp_path / "core_pattern"
    pattern.write_text("|/usr/share/apport/apport -p%p\n")
    assert core_dumps(pattern).value == "piped to /usr/share/apport/apport"
    assert "core_pattern=core" in core_dumps(pattern).ask
    pattern.write_text("core\n")
    assert not core_dumps(pattern).ask


def test_the_help_names_the_command(capsys):
    for arguments, words in ((["--help"], "sandbox"), (["sandbox", "--help"], "check")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert words in capsys.readouterr().out
