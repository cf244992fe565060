"""Weights as bytes: what numpy holds of a torch tensor, and one block of memory for all tensors of a version.

Tensors travel as numpy arrays, because Ray maps those without a copy, and torch tensors at half the speed; bfloat16,
which numpy has not, as the 16-bit words that it is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rollout.checksum import Bytes

Array = NDArray[Any]

ALIGNMENT = 64
"""Bytes: every tensor begins on a line of the processor's cache."""

# What Ray maps is read-only. Tensors made of it are copied from and never written to.
warnings.filterwarnings("ignore", "The given NumPy array is not writable")


@dataclass(frozen=True)
class TensorForm:
    """A tensor without its numbers; `dtype` by torch's name, such as "bfloat16"."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: Tensor) -> TensorForm:
        """That of a tensor, wherever it is."""
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    @property
    def array_dtype(self) -> np.dtype[Any]:
        """In which numpy holds it."""
        return np.dtype(np.uint16 if self.dtype == "bfloat16" else self.dtype)

    @property
    def num_bytes(self) -> int:
        """Of its numbers."""
        return math.prod(self.shape) * self.array_dtype.itemsize


def array_of(tensor: Tensor) -> Array:
    """The numbers of a tensor of any device, in C order; on its own memory where that is possible."""
    tensor = tensor.detach().cpu().contiguous()
    array: Array = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def tensor_of(array: Array, form: TensorForm) -> Tensor:
    """The tensor on the memory of `array`, which `array_of` made."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if form.dtype == "bfloat16" else tensor


class WeightMemory:
    """One block for all tensors of a version, behind each other in the order of `forms`.

    Attributes:
        forms: of the tensors, by checkpoint name.
        block: uint8 [bytes], with gaps of zeros between tensors.
        arrays: the tensors, on that memory.
        version: of the weights in it; None while they are being written, and before.
    """

    def __init__(self, forms: Mapping[str, TensorForm]) -> None:
        self.forms = dict(forms)
        self.version: int | None = None
        self.block: Bytes = np.zeros(sum(_room(form) for form in self.forms.values()), np.uint8)
        self.arrays: dict[str, Array] = {}
        begin = 0
        for name, form in self.forms.items():
            numbers = self.block[begin : begin + form.num_bytes].view(form.array_dtype)
            self.arrays[name] = numbers.reshape(form.shape)
            begin += _room(form)


def _room(form: TensorForm) -> int:
    return -(-form.num_bytes // ALIGNMENT) * ALIGNMENT
