"""A half-sampled request goes to disk and on in another process, with the same tokens."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import HybridConfig, HybridLM, load_pretrained, save_pretrained
from rollout.engine import EngineConfig, HybridEngine, Request
from rollout.sampling import Sampling

TINY = HybridConfig(
    vocab_size=40, hidden_size=32, num_hidden_layers=3, head_dim=16, attn_type_list=(0, 1, 0), initializer_range=0.15
)
PROMPT, SAMPLING = tuple(range(2, 39, 3)), Sampling(max_new_tokens=40, repetition_tokens=9, stop_token_ids=(3,))

ELSEWHERE = """
import json
import pickle
import sys
from pathlib import Path
import torch
from model import load_pretrained
from rollout.engine import EngineConfig, HybridEngine

torch.set_num_threads(1)
folder = Path(sys.argv[1])
engine = HybridEngine(load_pretrained(folder, dtype=getattr(torch, sys.argv[2])), EngineConfig(3, 100, 16))
engine.resume(pickle.loads((folder / "paused.pkl").read_bytes()))
ended = {}
while engine.has_work:
    for completion in engine.step():
        ended[completion.member] = [completion.token_ids.tolist(), completion.stop_reason.value]
print(json.dumps(ended))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_request_resumed_in_another_process_gives_the_same_tokens(tmp_path, dtype):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    save_pretrained(HybridLM(TINY), tmp_path)
    lm = load_pretrained(tmp_path, dtype=getattr(torch, dtype))
    engine = HybridEngine(lm, EngineConfig(num_slots=3, max_length=100, prefill_tokens=16))
    engine.submit([Request("a", PROMPT, 4, seed=5, sampling=SAMPLING)])
    early = {c.member for _ in range(7) for c in engine.step()}
    (tmp_path / "paused.pkl").write_bytes(pickle.dumps(engine.snapshot("a")))
    rest = {}
    while engine.has_work:
        for completion in engine.step():
            rest[str(completion.member)] = [completion.token_ids.tolist(), completion.stop_reason.value]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path), dtype],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == rest
    assert len(rest) + len(early) == 4
    assert max(len(tokens) for tokens, _ in rest.values()) > 20, "most of it was sampled over there"
