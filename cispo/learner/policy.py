"""Where a learner's policy comes from: a model folder, or random weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model import HybridConfig, HybridLM, load_pretrained


@dataclass(frozen=True)
class Policy:
    """The weights that a run begins with, not yet in memory.

    Attributes:
        config: of the model.
        folder: in Hugging Face layout, of that configuration; "" draws weights.
        seed: of the drawing.
    """

    config: HybridConfig
    folder: str = ""
    seed: int = 0

    def lm(self) -> HybridLM:
        """The model in one piece. Moves torch's random numbers if it draws."""
        if self.folder:
            return load_pretrained(self.folder)
        torch.manual_seed(self.seed)
        return HybridLM(self.config)
