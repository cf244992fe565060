"""Products of a few rows with a large weight, from a copy of the weight in oneDNN's own layout.

While decoding, each weight meets a handful of tokens, and on CPUs the BLAS behind `F.linear` spends more time on
bringing the weight into its inner layout, every call again, than on multiplying. A packed copy is laid out once per
version of the weights. Measured on weights that come from memory, one thread of an AMD EPYC, 16 rows by [1024, 256]:
256 us plain, 212 with the weight stored transposed, 213 through public mkldnn tensors (which copy in and out), 140
packed; 4 rows: 192, 140, 151, 80.

The two operators are those that torch.compile's CPU backend emits. They are not public, so this file alone names
them, and where a build lacks them every product is plain.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_ROWS = 64
"""More rows pay for the plain product's layout themselves; and oneDNN compiles a kernel (0.5 ms) per number of rows."""

MIN_WEIGHTS = 1 << 16
"""Smaller weights stay in the processor's cache, where plain products are as fast and start sooner. So are weights
that are no taller than wide, whatever their size: [256, 512] takes 195 us plain and 198 packed for 16 rows."""


def is_available() -> bool:
    """This build of torch has the operators."""
    operators = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(
        hasattr(operators, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )


class PackedWeight:
    """A packed copy of one weight: made when it is first wanted, and again when the weight has changed.

    It serves only under `torch.inference_mode`, where nothing can change the weight half-way. A change is noticed
    by the weight's address and by autograd's version counter, which optimizers, `copy_` and `load_state_dict` move;
    writing through `weight.data` moves neither.
    """

    def __init__(self) -> None:
        self._packed: Tensor | None = None
        self._source: Tensor | None = None  # held, so that no other weight can come to stand at its address
        self._version = -1

    def __reduce__(self) -> tuple[type[PackedWeight], tuple[()]]:
        """Copies and pickles start without: the layout belongs to this process and this weight."""
        return PackedWeight, ()

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [M, K] times the transpose of weight [N, K] -> [M, N]; `F.linear` wherever packing does not pay."""
        if not (
            torch.is_inference_mode_enabled()
            and x.dim() == 2
            and 0 < len(x) <= MAX_ROWS
            and weight.numel() >= MIN_WEIGHTS
            and weight.shape[0] > weight.shape[1]
            and weight.dtype == x.dtype == torch.float32
            and weight.device.type == "cpu"
            and not weight.is_inference()  # has no version counter
            and _AVAILABLE
        ):
            return F.linear(x, weight)
        if self._source is None or self._source.data_ptr() != weight.data_ptr() or self._version != weight._version:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
            self._source, self._version = weight, weight._version
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")
        return product


class Linear(nn.Linear):
    """`nn.Linear` without bias that uses a packed copy of its weight where that pays."""

    def __init__(self, in_features: int, out_features: int, **options: Any) -> None:
        super().__init__(in_features, out_features, bias=False, **options)
        self.packed = PackedWeight()

    def forward(self, x: Tensor) -> Tensor:
        """[M, in_features] -> [M, out_features]."""
        return self.packed.linear(x, self.weight)


_AVAILABLE = is_available()
