"""The kernels pass Triton's compiler for a data-centre GPU, which needs no device, only another process.

The interpreter accepts much that the compiler refuses: globals, types that change in a loop, layouts.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

PROGRAM = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from model.kernels import decode_triton, gated_norm_triton, lightning_programs

FLOAT32 = {"slopes", "start_state", "states", "last_state", "entering", "leaving", "pool", "scales", "partial"}
INTEGERS = {"cu_seqlens", "firsts", "origins", "lengths", "slots"}
NUMBERS = {"eps": "fp32", "slot_stride": "i64"}  # the other numbers are i32

def build(kernel, dtype, **constants):
    def kind(name):
        if name in constants:
            return "constexpr"
        if name in INTEGERS:
            return "*i64"
        if name in FLOAT32:
            return "*fp32"
        is_number = name in NUMBERS or name.startswith("num_") or name.endswith(("_token", "_head", "_dim", "_stride"))
        return NUMBERS.get(name, "i32") if is_number or name == "width" else f"*{dtype}"

    signature = {parameter.name: kind(parameter.name) for parameter in kernel.params}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, "num_stages": 2})
    assert compiled.asm["cubin"]
    print(kernel.__name__, compiled.metadata.shared)

width = int(sys.argv[1])
tiles = {"WIDTH": width, "TILE": min(width, 64), "CHUNK": 64, "PRECISION": "tf32"}
for backwards in (False, True):
    build(lightning_programs.walk_kernel, "bf16", HAS_STATE=backwards, BACKWARDS=backwards, **tiles)
for kernel in (lightning_programs.output_kernel, lightning_programs.grad_qk_kernel, lightning_programs.grad_v_kernel):
    build(kernel, "bf16", **tiles)
build(lightning_programs.walk_kernel, "fp32", HAS_STATE=True, BACKWARDS=False, **(tiles | {"PRECISION": "ieee"}))
build(decode_triton._step_kernel, "bf16", WIDTH=width, COLUMNS=32)
build(gated_norm_triton._forward_kernel, "bf16", BLOCK=8192)
build(gated_norm_triton._backward_kernel, "bf16", BLOCK=8192)
"""

HOPPER_SHARED_MEMORY = 227 * 1024


@pytest.mark.parametrize("width", [pytest.param(64, marks=pytest.mark.slow, id="d64"), pytest.param(128, id="d128")])
def test_every_kernel_compiles_and_fits_into_shared_memory(width, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(width)],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    kernels = [line.split() for line in done.stdout.splitlines()]
    assert len(kernels) == 9
    assert all(int(shared) <= HOPPER_SHARED_MEMORY for _, shared in kernels), kernels
