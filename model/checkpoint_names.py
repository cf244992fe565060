"""The names of weights in files: each family has its own, and every accepted spelling becomes the family's.

The model's modules are named as in MiniMax-M1's checkpoints, so that family has only another's spelling to translate.
Routed experts are stacked in memory and single in files. Names are also those under which weights travel from the
learner to the engines. Shapes: E experts, f expert width, D model width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

Stream = Iterator[tuple[str, Tensor]]

_STACKED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)$")


@dataclass(frozen=True)
class Names:
    """How a family spells its weights.

    Attributes:
        spellings: (other, own): parts of names that are replaced, in order; to replace them twice changes nothing.
        expert: the three matrices of an expert W_down(SiLU(W_gate x) * W_up x), as (gate, up, down).
    """

    spellings: tuple[tuple[str, str], ...]
    expert: tuple[str, str, str]

    def in_files(self, stream: Stream) -> Stream:
        """Give every weight its name in files; split stacked experts [E, 2f, D] and [E, D, f]."""
        gate_name, up_name, down_name = self.expert
        for name, tensor in stream:
            for other, own in self.spellings:
                name = name.replace(other, own)
            stacked = _STACKED.match(name)
            if stacked is None:
                yield name, tensor
                continue
            for e, weight in enumerate(tensor):
                if stacked[2] == "down_proj":
                    yield f"{stacked[1]}.{e}.{down_name}.weight", weight
                else:
                    gate, up = weight.chunk(2)
                    yield f"{stacked[1]}.{e}.{gate_name}.weight", gate
                    yield f"{stacked[1]}.{e}.{up_name}.weight", up


NAMES = {
    # transformers holds the experts under `mlp` in memory
    "minimax": Names(spellings=((".mlp.", ".block_sparse_moe."),), expert=("w1", "w3", "w2")),
    # some files of the family say self_attn instead of attention
    "bailing_linear": Names(
        spellings=(
            ("model.embed_tokens.", "model.word_embeddings."),
            (".self_attn.", ".attention."),
            (".block_sparse_moe.", ".mlp."),
        ),
        expert=("gate_proj", "up_proj", "down_proj"),
    ),
}
"""Family -> its names."""
