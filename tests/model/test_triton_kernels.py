"""Lightning attention in Triton against its definition in float64, gradients included.

On a CUDA device the kernels are compiled, elsewhere interpreted: same tests, same bounds but for TF32.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from model.errors import ModelError
from model.lightning import lightning_attention as torch_attention
from model.lightning import lightning_recurrence

pytest.importorskip("triton")
from model.kernels.lightning_triton import IS_INTERPRETED, lightning_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STRONGEST_AND_WEAKEST = torch.tensor([0.92, 4e-8])
"""exp(-s) of the first head of MiniMax-M1's first layer, and of the last head of its last."""

NAMES = ("out", "final state", "dq", "dk", "dv", "d state")


@dataclass(frozen=True)
class Case:
    lengths: tuple[int, ...]
    width: int
    with_state: bool = True
    dtype: torch.dtype = torch.float32

    @property
    def name(self):
        dtype = str(self.dtype).removeprefix("torch.")
        state = "from a state" if self.with_state else "from zero"
        return f"{'+'.join(map(str, self.lengths))} tokens, d{self.width}, {dtype}, {state}"

    def tensors(self):
        """q, k, v, state and the gradients of out and final state; all are exact in the case's dtype."""
        generator = torch.Generator().manual_seed(sum(self.lengths) + self.width)
        row, states = (sum(self.lengths), 2, self.width), (len(self.lengths), 2, self.width, self.width)
        tensors = [torch.randn(shape, generator=generator) for shape in (row, row, row, states, row, states)]
        return [x.to(self.dtype if x.shape == row else torch.float32).to(DEVICE) for x in tensors]

    def borders(self):
        return torch.tensor([0, *self.lengths], device=DEVICE).cumsum(0)


CASES = (
    Case((1, 15, 63, 64, 65, 257), 64),
    Case((1, 15, 63, 64, 65, 257), 16, with_state=False),
    Case((0, 5, 0, 130, 0), 16),
    Case((129, 64, 1), 32),
    Case((65, 3), 128),
    Case((1, 63, 129), 64, dtype=torch.bfloat16),
    Case((70, 2), 16, with_state=False, dtype=torch.float16),
)


def results(attend, case, convert):
    """Everything that `attend` gives: out, final state, and the gradients of its inputs."""
    q, k, v, state, grad_out, grad_final = (convert(x) for x in case.tensors())
    inputs = [x.requires_grad_() for x in ((q, k, v, state) if case.with_state else (q, k, v))]
    out, final = attend(*inputs[:3], convert(STRONGEST_AND_WEAKEST.to(DEVICE)), case.borders(), *inputs[3:])
    gradients = torch.autograd.grad([out, final], inputs, [grad_out.to(out.dtype), grad_final.to(final.dtype)])
    return dict(zip(NAMES, (out.detach(), final.detach(), *gradients), strict=False))


def assert_close(found, wanted, name, case):
    """To a few roundings: float32's of the largest sum, and one of each number's own dtype.

    A device rounds to the nearest, the interpreter cuts bfloat16 off, which costs up to twice as much. Compiled, inputs
    narrower than float32 meet states and scores as TF32, with its 11 bits; interpreted, as float32.
    """
    narrow = case.dtype != torch.float32
    nearest = not (IS_INTERPRETED and found.dtype == torch.bfloat16)
    own = torch.finfo(found.dtype).eps / (2 if nearest else 1) if found.dtype != torch.float32 else 0.0
    sums = 2.0**-10 if narrow and not IS_INTERPRETED else 2e-6
    largest = float(wanted.abs().max())
    torch.testing.assert_close(
        found.double(), wanted, rtol=own, atol=sums * largest, msg=lambda text: f"{name}: {text}"
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_results_and_gradients_equal_the_definition(case):
    found = results(lightning_attention, case, lambda x: x)
    wanted = results(lightning_recurrence, case, lambda x: x.double())
    assert found["out"].dtype == found["dk"].dtype == case.dtype
    assert found["final state"].dtype == torch.float32
    for name in wanted:
        assert_close(found[name], wanted[name], name, case)


def test_the_torch_code_gives_the_same():
    case = Case((40, 70), 32)
    found, wanted = (results(attend, case, lambda x: x) for attend in (lightning_attention, torch_attention))
    for name in wanted:
        assert_close(found[name], wanted[name].double(), name, case)


def test_a_prompt_in_pieces_equals_the_prompt_gradients_through_the_states_too():
    case = Case((201,), 16)
    slope = STRONGEST_AND_WEAKEST.to(DEVICE)

    def in_pieces(q, k, v, slope, _, state):
        outs = []
        for piece in (slice(0, 64), slice(64, 70), slice(70, 201)):  # at a chunk's border and inside
            out, state = lightning_attention(q[piece], k[piece], v[piece], slope, None, state)
            outs.append(out)
        return torch.cat(outs), state

    found = results(in_pieces, case, lambda x: x)
    wanted = results(lightning_recurrence, case, lambda x: x.double())
    for name in wanted:
        assert_close(found[name], wanted[name], name, case)
    with torch.no_grad():
        q, k, v, state, *_ = case.tensors()
        out, final = in_pieces(q, k, v, slope, None, state)
    assert torch.equal(final, found["final state"])


def test_views_of_one_projection_are_read_in_place():
    case = Case((5, 66), 16)
    q, k, v, state, grad_out, _ = case.tensors()
    whole = torch.cat([q, k, v], -1).requires_grad_()
    slope = STRONGEST_AND_WEAKEST.to(DEVICE)
    out, _ = lightning_attention(*whole.chunk(3, -1), slope, case.borders(), state)
    found = torch.autograd.grad(out, whole, grad_out)[0]
    out, _ = lightning_recurrence(*whole.double().chunk(3, -1), slope.double(), case.borders(), state.double())
    wanted = torch.autograd.grad(out, whole, grad_out.double())[0]
    assert_close(found, wanted.double(), "gradient of the projection", case)


@pytest.mark.parametrize("used", [0, 1], ids=["out alone", "the final state alone"])
def test_a_result_that_nothing_depends_on_has_no_part_in_the_gradients(used):
    case = Case((3, 66), 16)
    gradients = []
    for attend in (lightning_attention, lightning_recurrence):
        exact = torch.float64 if attend is lightning_recurrence else torch.float32
        *inputs, grad_out, grad_final = (x.to(exact) for x in case.tensors())
        inputs = [x.requires_grad_() for x in inputs]
        result = attend(*inputs[:3], STRONGEST_AND_WEAKEST.to(DEVICE), case.borders(), inputs[3])[used]
        grad = (grad_out, grad_final)[used]
        gradients.append(torch.autograd.grad(result, inputs, grad, allow_unused=True, materialize_grads=True))
    for name, found, wanted in zip(NAMES[2:], *gradients, strict=True):
        assert_close(found, wanted, name, case)


@pytest.mark.parametrize(
    "width, dtype", [(48, torch.float32), (8, torch.float32), (64, torch.float64)], ids=["d48", "d8", "float64"]
)
def test_what_the_kernels_do_not_have_is_refused(width, dtype):
    q = torch.zeros(2, 1, width, dtype=dtype, device=DEVICE)
    with pytest.raises(ModelError, match=rf"power of two from 16 to 256, but got {dtype}.* of width {width}"):
        lightning_attention(q, q, q, torch.ones(1, device=DEVICE))
