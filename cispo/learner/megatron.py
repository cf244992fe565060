"""The learner on megatron-core: weights cut over tensor, pipeline, expert and context ranks (model/megatron)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from cispo.errors import CheckpointError, ConfigError
from cispo.learner.config import LearnerConfig
from cispo.learner.policy import Policy
from cispo.learner.ranks import Ranks
from cispo.learner.row import RowOutput, learnt_logp, objective, replay_metrics, with_balance
from cispo.learner.shards import gather_logp, text_row
from cispo.learner.shared import SharedLearner
from cispo.metrics import Metric, merge_all
from cispo.optimizer import OptimizerConfig
from cispo.types import Floats, Ints, PackedBatch, PackedRow, Trajectory, UpdateSettings
from model.checkpoint import stream_weights
from model.checkpoint_names import Stream
from model.megatron.checkpoint import load_checkpoint, load_folder, save_checkpoint
from model.megatron.config import stage_config
from model.megatron.optimizer import StageOptimizer
from model.megatron.ranks import forget_ranks, initialise_ranks
from model.megatron.row import TokenRow
from model.megatron.schedule import Learnt, build_stages, forward, forward_backward
from model.megatron.weights import ParallelWeights
from model.replay import Replay


class MegatronLearner(SharedLearner):
    """This rank's stages of the policy, and megatron's distributed optimizer.

    Attributes:
        place: which rows this rank learns from, and whether its numbers count.
    """

    def __init__(self, policy: Policy, config: LearnerConfig, ranks: Ranks) -> None:
        check_gpu()
        torch.set_num_threads(config.num_threads)
        self.config, self.ranks = config, ranks
        self.model_config = dataclasses.replace(policy.config, param_dtype=config.dtype)
        self.place = initialise_ranks(policy.config, config.layout)
        self.stages = build_stages(
            stage_config(self.model_config, config.layout, recompute_layers=int(config.recompute))
        )
        self.parallel = ParallelWeights(self.stages)
        self.new_optimizer(config.optimizer)
        if policy.folder:
            load_folder(self.parallel, policy.folder, self.optimizer)
        else:
            self.parallel.load(stream_weights(policy.lm()), self.optimizer)

    def new_optimizer(self, config: OptimizerConfig) -> None:
        """Forget the moments and begin with these settings."""
        self.optimizer = StageOptimizer(
            self.stages, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
        )

    def _backward(self, batch: PackedBatch, settings: UpdateSettings) -> list[RowOutput]:
        device = torch.device(self.config.device)

        def loss_of(learnt: Learnt) -> tuple[torch.Tensor, RowOutput]:
            row = batch.rows[learnt.index]
            output = objective(
                learnt.head.weighted_logp,
                learnt.hidden_aD,
                row,
                learnt.places_a.cpu().numpy(),
                settings,
                fresh_weights=self._fresh_weights,
            )
            num_parts = self.config.layout.context
            output = with_balance(output, learnt.routing, row.share, settings.router_aux_coef, num_parts=num_parts)
            return output.loss, output

        rows = [token_row(row, device) for row in batch.rows]
        outputs = forward_backward(self.stages, rows, loss_of)
        self._replays = [row.replay for row in rows if row.replay is not None]
        return outputs

    def _logp(self, batch: PackedBatch, temperature: float) -> list[Floats]:
        def logp_of(learnt: Learnt) -> Floats:
            row, places_A = batch.rows[learnt.index], learnt.places_a.cpu().numpy()
            return learnt_logp(learnt.head.logp_and_entropy, learnt.hidden_aD, row, places_A, temperature)

        return forward(self.stages, [token_row(row, torch.device(self.config.device)) for row in batch.rows], logp_of)

    @property
    def _counts(self) -> bool:
        return self.place.is_reporter

    def _parts(self) -> dict[str, Metric]:
        """Each rank has routed other tokens, or in other layers."""
        return merge_all(replay_metrics(replay) for replay in self._replays)

    def _clip(self, max_norm: float) -> float:
        return self.optimizer.clip(max_norm)

    def _step(self, lr: float) -> None:
        self.optimizer.step(lr)

    def _drop(self) -> None:
        """The next `forward_backward` forgets them."""

    def _stream(self) -> Stream:
        return self.parallel.stream(only_first_rank=True)

    def _text_logp(self, tokens_T: torch.Tensor) -> torch.Tensor:
        """As a row that all ranks have; each knows some of it, or nothing if it is not of the last stage."""
        batch = PackedBatch((text_row(tokens_T.cpu().numpy()),))
        told = self.ranks.gather(tuple(self._logp(batch, temperature=1.0)))
        return torch.from_numpy(gather_logp(batch, [told])[0][1:])

    def probe(self, trajectory: Trajectory) -> dict[str, float]:
        """Nothing: these stages do not sample, so there is no second side to compare with token by token."""
        return {}

    def save(self, folder: Path) -> None:
        """Megatron's distributed checkpoint: any layout of the same policy can read it."""
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(self.stages, self.optimizer, folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        self._fresh_weights = False
        try:
            load_checkpoint(self.stages, self.optimizer, folder)
        except Exception as error:
            raise CheckpointError(
                f"the learner's state in {folder} cannot be read ({type(error).__name__}: {error}); "
                f"delete that checkpoint to resume from the one before it."
            ) from error

    def close(self) -> None:
        """Leave megatron's groups and the other ranks."""
        forget_ranks()
        super().close()


def check_gpu() -> None:
    """Raise ConfigError where this process has no CUDA device to make tensors on."""
    try:
        torch.cuda.current_device()
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(
            "learner.kind=megatron needs a GPU for each rank, because megatron-core makes its tensors there, and this "
            "process sees none; on CPUs use learner=local or learner=deepspeed."
        ) from error


def token_row(row: PackedRow, device: torch.device) -> TokenRow:
    """What the stages need to know of a row."""

    def there(array: Ints) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    learnt_A = row.mask_T.nonzero()[0]
    replay = None if row.experts_TLk is None else Replay(torch.from_numpy(row.experts_TLk).to(device))
    return TokenRow(there(row.tokens_T), there(row.positions_T), there(row.cu_seqlens), there(learnt_A), replay=replay)
