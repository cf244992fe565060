"""Decoding in Triton, in place in a pool, against the step by definition in float64."""

import pytest
import torch

from model.errors import ModelError
from model.lightning import lightning_step

pytest.importorskip("triton")
from model.kernels.decode_triton import lightning_decode_

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLOPE = torch.tensor([0.92, 0.01, 4e-8], device=DEVICE)


def numbers(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("slots", [[0], [6, 1, 4]], ids=["S8-N1", "S8-N3"])
@pytest.mark.parametrize("width", [16, 64, 128], ids=["d16", "d64", "d128"])
def test_two_steps_equal_the_definition_and_leave_other_slots_alone(width, slots, dtype):
    pool, slots_N = numbers(8, 3, width, width), torch.tensor(slots, device=DEVICE)
    before, wanted = pool.clone(), pool[slots_N].double()
    for step in range(2):
        qkv = numbers(len(slots), 3, 3 * width, dtype=dtype, seed=step + 1)
        q, k, v = qkv.chunk(3, -1)
        out = lightning_decode_(q, k, v, SLOPE, pool, slots_N)
        wanted_out, wanted = lightning_step(q.double(), k.double(), v.double(), SLOPE.double(), wanted)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out.double(), wanted_out, rtol=0, atol=1e-6 * float(wanted_out.abs().max()))
        torch.testing.assert_close(pool[slots_N].double(), wanted, rtol=1e-6, atol=1e-6)
    others = [slot for slot in range(8) if slot not in slots]
    assert torch.equal(pool[others], before[others])


def test_no_slots_change_nothing():
    pool = numbers(2, 3, 16, 16)
    before, empty = pool.clone(), numbers(0, 3, 16)
    out = lightning_decode_(empty, empty, empty, SLOPE, pool, torch.tensor([], dtype=torch.int64, device=DEVICE))
    assert out.shape == (0, 3, 16)
    assert torch.equal(pool, before)


@pytest.mark.parametrize(
    "pool", [numbers(2, 3, 16, 16).double(), numbers(2, 3, 16, 16).mT], ids=["a float64 pool", "states value by key"]
)
def test_another_pool_is_refused(pool):
    q = numbers(1, 3, 16)
    with pytest.raises(ModelError, match="float32 pool of contiguous states"):
        lightning_decode_(q, q, q, SLOPE, pool, torch.tensor([0], device=DEVICE))
