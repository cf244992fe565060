"""What is left of a sequence: counters against those of the engine that keeps them, and limits by hand."""

import numpy as np
import pytest
import torch

from cispo.errors import WeightSyncError
from cispo.types import StopReason
from model import HybridConfig, HybridLM
from rollout.continuation import Growing
from rollout.engine import EngineConfig, HybridEngine, Request
from rollout.sampling import Sampling
from rollout.snapshot import PausedRequest
from rollout.weight_package import check_arrays, make_package
from rollout.weight_wire import digest_of, from_bytes, num_bytes, to_bytes

TINY = HybridConfig(
    vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=1, num_key_value_heads=1, head_dim=16,
    rotary_dim=8, intermediate_size=8, num_local_experts=2, attn_type_list=(0, 1), initializer_range=0.3,
)  # fmt: skip


@pytest.mark.parametrize("prompt", [(1, 2), (1, 5, 2), (5, 6, 2)], ids=["outside", "inside", "closed"])
@pytest.mark.parametrize("num_steps", [1, 7, 25])
def test_the_rules_counted_anew_are_those_of_the_engine(prompt, num_steps):
    """A model with 12 tokens opens (5) and closes (6) think blocks often; forced tokens and confident runs count."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    engine = HybridEngine(HybridLM(TINY), EngineConfig(8, 60, 64))
    sampling = Sampling(0.5, 1.0, 0, 40, (), 5, 6, thinking_budget=6, repetition_tokens=30, repetition_probability=0.1)
    engine.submit([Request("a", prompt, 8, 3, sampling)])
    for _ in range(num_steps):
        engine.step()
    paused = PausedRequest.from_state(engine.snapshot("a"))
    assert len(paused.members) == 8
    for member, sequence in paused.members.items():
        growing = Growing(paused.request, member)
        growing.take(sequence)
        assert growing.rules == sequence.rules
        assert growing.sampling.max_new_tokens == 40 - num_steps
        assert growing.sampling.thinking_budget == max(1, 6 - sequence.rules.num_thought)
        assert growing.prompt.tolist() == [*prompt, *sequence.token_ids.tolist()]
    if num_steps == 25:
        states = [sequence.rules for sequence in paused.members.values()]
        assert any(state.num_thought for state in states) and any(state.confident_run for state in states)
        assert any((sequence.version < 0).any() for sequence in paused.members.values()), "a closing was forced"


def test_an_end_that_was_lost_is_seen_in_the_tokens_and_chances_do_not_come_twice():
    request = Request("a", (1, 2), 2, 7, Sampling(max_new_tokens=3, stop_token_ids=(9,)))
    one, other = Growing(request, 0), Growing(request, 1)
    assert one.reason is None and one.seed != other.seed
    seeds = {one.seed}
    for token, reason in ((4, None), (9, StopReason.STOP), (4, StopReason.LENGTH)):
        one.token_ids.append(token)
        assert one.reason is reason
        seeds.add(one.seed)
    assert len(seeds) == 4
    assert Growing(request, 0, [4]).seed == Growing(request, 0, [5]).seed, "the place counts, not what was drawn"


def test_a_package_crosses_the_wire_bit_for_bit_and_a_torn_one_is_refused():
    generator = np.random.default_rng(0)
    arrays = {
        "odd": generator.integers(0, 255, 3, dtype=np.uint8),
        "weight": generator.standard_normal((5, 3)).astype(np.float32),
        "scalar": np.array(2.5),
        "turned": generator.standard_normal((4, 6)).astype(np.float16).T,
        "empty": np.zeros((0, 4), dtype=np.int64),
    }
    package = make_package(((name, torch.from_numpy(array)) for name, array in arrays.items()), 12)
    body = bytearray(b"".join(bytes(piece) for piece in to_bytes(package)))
    assert len(body) == num_bytes(package)
    arrived = from_bytes(body)
    assert arrived.manifest.version == 12 and digest_of(arrived) == digest_of(package)
    check_arrays(arrived.manifest, arrived.arrays)
    for name, array in arrived.arrays.items():
        assert array.dtype == arrays[name].dtype and np.array_equal(array, arrays[name])
    for torn in (body[:-1], body + b"\0", body[5:], b"{}\n", b'{"version": 1, "tensors": {"a": {}}}\n', b""):
        with pytest.raises(WeightSyncError):
            from_bytes(bytearray(torn))
    body[-1] ^= 1
    with pytest.raises(WeightSyncError, match="checksum"):
        torn = from_bytes(body)
        check_arrays(torn.manifest, torn.arrays)
    hostile = b'{"version": 1, "tensors": {"a": {"shape": [1], "dtype": "O", "checksum": 0}}}\n' + bytes(8)
    with pytest.raises(WeightSyncError, match="plain numbers"):
        from_bytes(bytearray(hostile))
