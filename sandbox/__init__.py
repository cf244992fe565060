"""Runs a stranger's program and says what it did. Knows nobody: it imports nothing of ours, only the standard library.

    with SandboxPool(size=2, limits=Limits(cpu_seconds=1.0)) as pool:
        execution = pool.run(Program("print(int(input()) + 1)", stdin="41"))
    assert execution.verdict is Verdict.OK and execution.stdout == b"42\\n"

From the outside in: sandbox.py (the doors), languages.py (a program as tasks), cells.py and cell.py (warm cells),
watch.py (deadlines and limits), endings.py (verdicts), cell_walls.py (bubblewrap), inside/ (what runs in a cell),
seccomp.py and refused_calls.py, rlimits.py, process_tree.py (what a tree uses). Without cells: supervisor.py,
isolation.py, landlock_tier.py, bootstrap.py. self_test.py (canaries), check_report.py (`cispo sandbox check`).
Over machines: serve.py (`cispo sandbox serve`), service.py (its HTTP side), remote.py (the client), wire.py (the JSON),
spread.py (one pool over several sites).
"""

from sandbox.config import SandboxConfig
from sandbox.errors import IsolationError, SandboxError
from sandbox.program import Execution, Limits, Program, Verdict
from sandbox.program_pool import ProgramPool, open_pool
from sandbox.remote import RemotePool
from sandbox.sandbox import Sandbox, SandboxPool
from sandbox.service_config import RemoteConfig

__all__ = [
    "Execution",
    "IsolationError",
    "Limits",
    "Program",
    "ProgramPool",
    "RemoteConfig",
    "RemotePool",
    "Sandbox",
    "SandboxConfig",
    "SandboxError",
    "SandboxPool",
    "Verdict",
    "open_pool",
]
