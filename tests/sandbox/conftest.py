"""One sandbox with tight limits for all tests of this folder."""

import pytest

from sandbox import IsolationError, Limits, Sandbox

TIGHT = Limits(cpu_seconds=0.5, wall_seconds=3.0, memory_bytes=96 << 20, output_bytes=1 << 20, num_processes=24)


@pytest.fixture(scope="session")
def box():
    """Skipping where a machine cannot isolate would hide a broken sandbox: the missing piece fails the test."""
    try:
        Sandbox.check()
    except IsolationError as error:
        pytest.fail(str(error))
    return Sandbox(TIGHT)
