"""The learner in plain torch, in one process: what every other learner must agree with."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cispo.errors import CheckpointError
from cispo.learner.config import LearnerConfig
from cispo.learner.guards import guarded_lr, reason_to_skip
from cispo.learner.row import RowOutput, row_loss
from cispo.metrics import merge_all
from cispo.optimizer import OptimizerConfig
from cispo.protocols import WeightStream
from cispo.types import PackedBatch, Trajectory, UpdateResult, UpdateSettings
from model import HybridLM, save_pretrained
from model.checkpoint import stream_weights
from model.mismatch import mismatch_by_kind

PROBE_ACTIONS = 32
"""Actions that a probe decodes one by one: 0.3 s for the embedded default on one busy core."""


class LocalLearner:
    """Implements the Learner protocol with one HybridLM and torch.optim.AdamW."""

    def __init__(self, lm: HybridLM, config: LearnerConfig) -> None:
        torch.set_num_threads(config.num_threads)
        self.lm = lm.to(config.device)
        self.config = config
        self._fresh_weights = False
        self.new_optimizer(config.optimizer)

    def new_optimizer(self, config: OptimizerConfig) -> None:
        """Forget the moments and begin with these settings."""
        self.optimizer = torch.optim.AdamW(
            self.lm.parameters(),
            lr=0.0,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,  # one pass over each tensor: a third of the time on a CPU
        )

    def _apply(self, config: OptimizerConfig) -> None:
        """Settings are the configuration's, also on a resumption that changes them; a state only holds moments."""
        for group in self.optimizer.param_groups:
            group.update(betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)

    def update(self, batch: PackedBatch, settings: UpdateSettings) -> UpdateResult:
        """One optimizer update over all rows of `batch`; rows only bound memory, the gradient is that of the whole."""
        self.optimizer.zero_grad(set_to_none=True)
        outputs = [self._backward(batch, index, settings) for index in range(len(batch.rows))]
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self.lm.parameters(), settings.max_grad_norm))
        metrics = merge_all(output.metrics for output in outputs)
        loss, kl = sum(float(output.loss.detach()) for output in outputs), float(metrics["drift/kl"])
        skipped = reason_to_skip(loss=loss, grad_norm=grad_norm, kl=kl, settings=settings)
        lr = guarded_lr(kl, settings)
        if not skipped:
            self._step(lr)
        return UpdateResult(
            loss=loss,
            grad_norm=grad_norm,
            lr=lr,
            kl=kl,
            skipped=skipped,
            metrics=metrics,
            logp_rows=tuple(output.logp_T for output in outputs),
        )

    def _backward(self, batch: PackedBatch, index: int, settings: UpdateSettings) -> RowOutput:
        row = batch.rows[index]
        share = row.num_tokens / batch.num_tokens
        output = row_loss(self.lm, row, settings, share=share, fresh_weights=self._fresh_weights)
        output.loss.backward()
        return output

    def _step(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self._fresh_weights = False

    def weights(self) -> WeightStream:
        """The present weights as numpy, in the checkpoint's names. Read them before the next update."""
        self._fresh_weights = True
        for name, tensor in stream_weights(self.lm):
            yield name, tensor.detach().cpu().numpy()

    def probe(self, trajectory: Trajectory) -> dict[str, float]:
        """See Learner; on the prompt and the first actions. The model of this process runs both sides."""
        num_prefill = int(trajectory.action_mask_T.argmax())
        tokens_T = torch.from_numpy(trajectory.token_ids_T[: num_prefill + PROBE_ACTIONS]).to(self.lm.device)
        found = mismatch_by_kind(self.lm, tokens_T, num_prefill)
        return {f"mismatch/{kind}": difference for kind, difference in found.items()}

    def save(self, folder: Path) -> None:
        """Weights as safetensors, optimizer as a torch file of tensors and numbers only."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.lm.state_dict().items()}, folder / "weights.safetensors")
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        self._fresh_weights = False
        try:
            self.lm.load_state_dict(load_file(folder / "weights.safetensors"))
            self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
            self._apply(self.config.optimizer)
        except Exception as error:
            raise CheckpointError(
                f"the learner's state in {folder} cannot be read ({type(error).__name__}: {error}); "
                f"delete that checkpoint to resume from the one before it."
            ) from error

    def export(self, folder: Path, *, eos_token_id: int | None = None, pad_token_id: int | None = None) -> None:
        """The policy in Hugging Face layout."""
        save_pretrained(self.lm, folder, eos_token_id=eos_token_id, pad_token_id=pad_token_id)
