"""A state in a file: what a kill leaves, who may go on from it, and that the tokens are those of a quiet run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cispo.errors import CheckpointError
from model import HybridConfig, HybridLM
from model.checkpoint import fingerprint
from rollout import state_file
from rollout.engine import EngineConfig, HybridEngine, Request
from rollout.sampling import Sampling
from rollout.state_file import load_state, save_state, stream_resumably

SIZES = {"vocab_size": 40, "hidden_size": 16, "head_dim": 8, "rotary_dim": 4, "intermediate_size": 16}
TINY = HybridConfig(**SIZES, num_local_experts=2, initializer_range=0.2)
PROMPT = tuple(np.random.default_rng(0).integers(0, 40, 60).tolist())
REQUEST = Request("a", PROMPT, seed=4, sampling=Sampling(max_new_tokens=40))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_lm(seed=0):
    torch.manual_seed(seed)
    return HybridLM(TINY)


def make_engine(lm=None):
    return HybridEngine(lm or make_lm(), EngineConfig(2, 120, prefill_tokens=8))


def same_state(a, b):
    assert a.meta == b.meta
    assert a.arrays.keys() == b.arrays.keys()
    for name, array in a.arrays.items():
        assert array.dtype == b.arrays[name].dtype
        np.testing.assert_array_equal(array, b.arrays[name])


@pytest.mark.parametrize("num_steps", [0, 4, 12], ids=["waiting", "half a prompt", "some tokens"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_state_comes_back_from_its_file_as_it_was(tmp_path, num_steps, dtype):
    torch.manual_seed(0)
    engine = make_engine(HybridLM(HybridConfig(**SIZES, param_dtype=dtype)))
    engine.submit([REQUEST])
    for _ in range(num_steps):
        engine.step()
    state = engine.snapshot("a")
    save_state(tmp_path / "deep" / "state", state, "model")
    same_state(load_state(tmp_path / "deep" / "state", "model"), state)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["state"]


def test_a_fingerprint_is_of_the_configuration_and_of_every_weight():
    assert fingerprint(make_lm()) == fingerprint(make_lm())
    seen = {fingerprint(make_lm()), fingerprint(make_lm(1)), fingerprint(make_lm().bfloat16())}
    for name, _ in make_lm().named_parameters():
        lm = make_lm()
        with torch.no_grad():
            lm.get_parameter(name).flatten()[0] += 1
        seen.add(fingerprint(lm))
    assert len(seen) == 3 + len(list(make_lm().parameters()))


def test_a_state_of_other_weights_another_request_or_a_damaged_one_is_refused(tmp_path):
    lm, path = make_lm(), tmp_path / "state"
    engine = make_engine(lm)
    engine.submit([REQUEST])
    for _ in range(12):
        engine.step()
    save_state(path, engine.snapshot("a"), fingerprint(lm))

    def refused(request=REQUEST, model=lm):
        with pytest.raises(CheckpointError) as error:
            next(stream_resumably(make_engine(model), request, path, fingerprint(model)))
        assert path.exists()
        return str(error.value)

    assert f"is of model {fingerprint(lm)[:12]}, and this is model" in refused(model=make_lm(1))
    assert "another prompt;" in refused(Request("a", PROMPT[1:], 1, 4, REQUEST.sampling))
    assert "another seed and sampling settings;" in refused(Request("a", PROMPT, 1, 5, Sampling(max_new_tokens=39)))
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-100], flipped(whole, len(whole) // 2), b"{}"):
        path.write_bytes(damaged)
        assert "cannot be read" in refused()


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_a_writer_that_fails_half_way_leaves_the_old_state(tmp_path, monkeypatch):
    engine = make_engine()
    engine.submit([REQUEST])
    engine.step()
    old = engine.snapshot("a")
    save_state(tmp_path / "state", old, "model")

    def half(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(state_file.np, "savez", half)
    with pytest.raises(OSError, match="disk full"):
        save_state(tmp_path / "state", engine.snapshot("a"), "model")
    same_state(load_state(tmp_path / "state", "model"), old)


def test_a_stream_without_trouble_is_that_of_the_engine_and_leaves_no_file(tmp_path):
    wanted = list(make_engine().stream(REQUEST))
    assert list(stream_resumably(make_engine(), REQUEST, tmp_path / "state", "m", save_seconds=0)) == wanted
    assert list(tmp_path.iterdir()) == []


# --- the kill ---------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_state_file import REQUEST, fingerprint, make_engine, make_lm, stream_resumably
lm = make_lm()
for token_id in stream_resumably(make_engine(lm), REQUEST, Path(sys.argv[1]), fingerprint(lm), save_seconds=0):
    print(token_id, flush=True)
"""


def start(path):
    program = PROGRAM.format(folder=str(Path(__file__).parent))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", program, str(path)], env=environment, stdout=subprocess.PIPE, text=True
    )


def progress(path, model):
    """(new tokens, prompt tokens) that a state file holds; None if there is none."""
    if not path.exists():
        return None
    arrays = load_state(path, model).arrays
    if "0/token_ids" in arrays:
        return len(arrays["0/token_ids"]), len(PROMPT)
    return 0, int(arrays["reading/cache/length"]) if "reading/cache/length" in arrays else 0


@pytest.mark.timeout(120)
def test_a_killed_process_is_gone_on_from_with_the_same_tokens(tmp_path):
    """Killed while it reads its prompt, again while it answers, and then left alone."""
    path, model = tmp_path / "state", fingerprint(make_lm())
    wanted = list(make_engine().stream(REQUEST))
    reached = []
    for is_far_enough in (lambda new, read: read >= 16, lambda new, read: new >= 10):
        process = start(path)
        while (seen := progress(path, model)) is None or not is_far_enough(*seen):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        reached.append(progress(path, model))
    assert reached[0] < reached[1]  # the second went on where the first was killed, or further
    last = start(path)
    out, _ = last.communicate()
    assert [int(line) for line in out.split()] == wanted
    assert not path.exists()
