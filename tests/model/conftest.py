"""Without a CUDA device Triton's kernels run in its interpreter, which must be said before triton is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
