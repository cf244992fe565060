"""What all learners do the same way: an update from gradients to guards to step, and weights on their way out.

A backend says how rows are run backward, how a step is made and how whole weights are gathered; whether a step is
made, and with which rate, is decided here, from numbers that are the same on all ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cispo.learner.config import LearnerConfig
from cispo.learner.guards import guarded_lr, reason_to_skip
from cispo.learner.ranks import Ranks
from cispo.learner.row import RowOutput
from cispo.metrics import Metric, merge_all
from cispo.protocols import WeightStream
from cispo.types import Floats, Ints, PackedBatch, UpdateResult, UpdateSettings
from model import HybridConfig, HybridLM, write_pretrained
from model.checkpoint_names import Stream


class SharedLearner(ABC):
    """Implements the Learner protocol but for what a backend does its own way.

    Attributes:
        model_config: the policy's.
        config: the learner's.
        ranks: the processes that make each update together. All of them must make each call, in the same order.
    """

    model_config: HybridConfig
    config: LearnerConfig
    ranks: Ranks
    _fresh_weights = False
    """The weights are those that were last streamed out, so tokens of age 0 show the mismatch."""

    def update(self, batch: PackedBatch, settings: UpdateSettings) -> UpdateResult:
        """One update over all ranks' rows, of which `batch` holds this rank's; rows only bound memory."""
        outputs = self._backward(batch, settings)
        grad_norm = self._clip(settings.max_grad_norm)
        counted = outputs if self._counts else []
        loss, metrics = self.ranks.merge(
            sum(float(output.loss.detach()) for output in counted),
            merge_all([*(output.metrics for output in counted), self._parts()]),
        )
        kl = float(metrics["drift/kl"])
        skipped = reason_to_skip(loss=loss, grad_norm=grad_norm, kl=kl, settings=settings)
        lr = guarded_lr(kl, settings)
        if skipped:
            self._drop()
        else:
            self._step(lr)
            self._fresh_weights = False
        return UpdateResult(
            loss=loss,
            grad_norm=grad_norm,
            lr=lr,
            kl=kl,
            skipped=skipped,
            metrics=metrics,
            logp_rows=tuple(output.logp_T for output in outputs),
        )

    @torch.no_grad()
    def logp(self, batch: PackedBatch, temperature: float) -> tuple[Floats, ...]:
        """See Learner; of this rank's rows. Neither weights nor gradients change."""
        return tuple(self._logp(batch, temperature))

    def weights(self) -> WeightStream:
        """The present weights in their own dtype, in the checkpoint's names. Read them before the next update."""
        self._fresh_weights = True
        for name, tensor in self._stream():
            yield name, tensor.detach().cpu()

    def text_logp(self, token_ids: Ints) -> Floats:
        """See Learner; one forward pass as in training. All ranks must ask, and rank 0 is told."""
        # With a graph that nobody uses: without one the model would run as it samples, which is the other side.
        logp = self._text_logp(torch.from_numpy(token_ids).to(self.config.device))
        return np.concatenate([np.full(1, np.nan, np.float32), logp.detach().float().cpu().numpy()])

    def export(self, folder: Path, *, eos_token_id: int | None = None, pad_token_id: int | None = None) -> None:
        """The policy in Hugging Face layout, written by rank 0."""
        if self.ranks.rank == 0:
            write_pretrained(
                self.model_config, self._stream(), folder, eos_token_id=eos_token_id, pad_token_id=pad_token_id
            )
        else:
            for _ in self._stream():
                pass

    def close(self) -> None:
        """Leave the other ranks."""
        self.ranks.leave()

    @property
    def _counts(self) -> bool:
        """False on a rank whose losses and metrics are copies of another's."""
        return True

    def _parts(self) -> dict[str, Metric]:
        """Metrics of which every rank has a part of its own, whether its losses count or not."""
        return {}

    @abstractmethod
    def _backward(self, batch: PackedBatch, settings: UpdateSettings) -> list[RowOutput]:
        """Run each row forward and backward; afterwards the gradients are those of the sum over all ranks' rows."""

    @abstractmethod
    def _logp(self, batch: PackedBatch, temperature: float) -> list[Floats]:
        """`row_logp` of each row."""

    @abstractmethod
    def _clip(self, max_norm: float) -> float:
        """Scale the gradients down to `max_norm`; returns the global norm before, the same on all ranks."""

    @abstractmethod
    def _step(self, lr: float) -> None:
        """Move the weights."""

    @abstractmethod
    def _drop(self) -> None:
        """Forget the gradients: neither weights nor moments may know that there was an update."""

    @abstractmethod
    def _text_logp(self, tokens_T: Tensor) -> Tensor:
        """Log-probabilities [T - 1] of all tokens but the first.

        Every rank must make it, with the same tokens.
        """

    @abstractmethod
    def _stream(self) -> Stream:
        """(checkpoint name, whole weight), gathered a few at a time; every rank must read it to the end."""


def dtype_of(config: LearnerConfig) -> torch.dtype:
    """That of weights and activations while learning."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    return dtype


def hidden_of(lm: HybridLM, tokens_T: Tensor) -> Tensor:
    """Hidden states [T, D] of one sequence by the packed forward pass of an update."""
    length = len(tokens_T)
    borders = torch.tensor([0, length], device=tokens_T.device)
    hidden_TD: Tensor = lm(tokens_T, torch.arange(length, device=tokens_T.device), borders)
    return hidden_TD
