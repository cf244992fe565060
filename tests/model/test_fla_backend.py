"""Layout, sign and scale of what is handed to flash-linear-attention, and the compilers that get it wrong.

The library runs on GPUs only. In its place stands simple GLA written down from its documentation.
"""

import pytest
import torch

from model.kernels.fla_backend import FEW, FlaLightning, miscompiled
from model.lightning import lightning_recurrence, lightning_step, slopes


class SimpleGlaByHand:
    """`fla.ops.simple_gla` as documented: S = exp(g_gamma) S + k^T v, o = scale q S, [B, T, H, d], token by token."""

    def __init__(self):
        self.called = []

    def chunk_simple_gla(self, q, k, v, **options):
        self.called.append("chunk")
        return self.run(q, k, v, **options)

    def fused_recurrent_simple_gla(self, q, k, v, **options):
        self.called.append("recurrent")
        return self.run(q, k, v, **options)

    def run(
        self,
        q,
        k,
        v,
        g=None,
        g_gamma=None,
        scale=None,
        initial_state=None,
        output_final_state=False,
        cu_seqlens=None,
    ):
        assert g is None
        batch, num_tokens, heads, width = q.shape
        borders = [0, num_tokens] if cu_seqlens is None else cu_seqlens.tolist()
        assert cu_seqlens is None or batch == 1
        assert initial_state is None or initial_state.shape == (len(borders) - 1, heads, width, width)
        assert initial_state is None or initial_state.dtype == torch.float32
        scale = width**-0.5 if scale is None else scale
        decay = torch.ones(heads) if g_gamma is None else g_gamma.exp()
        outs, finals = [], []
        for n in range(len(borders) - 1):
            state = torch.zeros(heads, width, width) if initial_state is None else initial_state[n]
            for t in range(borders[n], borders[n + 1]):
                state = decay[:, None, None] * state + torch.einsum("hk,hv->hkv", k[0, t].float(), v[0, t].float())
                outs.append(scale * torch.einsum("hk,hkv->hv", q[0, t].float(), state))
            finals.append(state)
        return torch.stack(outs)[None].to(q.dtype), torch.stack(finals) if output_final_state else None


def tensors(lengths, heads=4, width=8):
    generator = torch.Generator().manual_seed(sum(lengths))
    row, states = (sum(lengths), heads, width), (len(lengths), heads, width, width)
    return [(0.3 * torch.randn(shape, generator=generator)).requires_grad_() for shape in (row, row, row, states)]


@pytest.mark.parametrize("with_state", [True, False], ids=["from a state", "from zero"])
@pytest.mark.parametrize("lengths, kernel", [([3, 5], "recurrent"), ([FEW - 1, 1], "chunk"), ([20, 0, 2], "chunk")])
def test_simple_gla_is_called_so_that_it_is_lightning_attention(lengths, kernel, with_state):
    inputs = tensors(lengths)
    used = inputs if with_state else inputs[:3]
    slope, borders = slopes(4, 1, 8), torch.tensor([0, *lengths]).cumsum(0)
    library = SimpleGlaByHand()
    results = []
    for attend in (FlaLightning(library).attend, lightning_recurrence):
        out, final = attend(*inputs[:3], slope, borders, inputs[3] if with_state else None)
        results.append((out, final, *torch.autograd.grad(out.sin().sum() + (final**2).sum(), used)))
    assert library.called == [kernel]
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_step_reads_and_writes_its_slots_alone():
    q, k, v, _ = (x.detach() for x in tensors([3]))
    pool = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    before, slots_N, slope = pool.clone(), torch.tensor([5, 0, 2]), slopes(4, 0, 8)
    out = FlaLightning(SimpleGlaByHand()).step_(q, k, v, slope, pool, slots_N)
    wanted_out, wanted = lightning_step(q, k, v, slope, before[slots_N])
    torch.testing.assert_close(out, wanted_out)
    torch.testing.assert_close(pool[slots_N], wanted)
    assert torch.equal(pool[[1, 3, 4]], before[[1, 3, 4]])


@pytest.mark.parametrize(
    "capability, version, is_wrong",
    [
        ((9, 0), "3.3.1", False),
        ((9, 0), "3.4.0", True),
        ((9, 0), "3.6.0+git123abc", True),
        ((9, 0), "3.7.0", True),
        ((9, 0), "3.7.1", False),
        ((9, 0), "3.10.0", False),
        ((8, 0), "3.6.0", False),
        ((10, 0), "3.6.0", False),
    ],
)
def test_the_compilers_that_corrupt_gradients_on_hopper(capability, version, is_wrong):
    sentence = miscompiled(capability, version)
    assert (sentence is not None) == is_wrong
    assert not is_wrong or f"Triton {version}" in sentence
