"""What every learner is configured by, whichever library it uses."""

from __future__ import annotations

from dataclasses import dataclass, field

from cispo.errors import ConfigError, faults_of
from cispo.optimizer import OptimizerConfig
from cispo.schedule import Schedule, check_schedule
from model.layout import Layout

KINDS = ("local", "deepspeed", "megatron")
COPIES = ("whole", "sharded")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class DeepSpeedConfig:
    """ZeRO: what is cut over the ranks instead of being copied on each.

    Attributes:
        stage: 0 nothing, 1 moments and master weights, 2 gradients too, 3 weights too.
        offload_optimizer: moments and master weights live in the host's memory, and the step is made there.
        offload_weights: weights too; needs stage 3.
    """

    stage: int = 2
    offload_optimizer: bool = False
    offload_weights: bool = False

    def __post_init__(self) -> None:
        if self.stage not in (0, 1, 2, 3):  # where the other rule means nothing
            raise ConfigError(f"learner.deepspeed.stage must be 0, 1, 2 or 3; got {self.stage}.")
        if self.offload_optimizer and self.stage == 0 or self.offload_weights and self.stage != 3:
            raise ConfigError(
                f"learner.deepspeed.offload_optimizer needs stage 1, 2 or 3 and offload_weights stage 3, because only "
                f"what is sharded can be moved out; got stage {self.stage}."
            )


@dataclass(frozen=True)
class LearnerConfig:
    """How the policy is updated.

    Attributes:
        kind: which backend: "local" (torch), "deepspeed" or "megatron".
        num_ranks: processes that make each update together, one device each.
        copies: of the local learner with several ranks: "whole" weights on each, or "sharded" over them (FSDP).
        deepspeed: settings of that backend.
        layout: of the megatron backend: tensor, pipeline, expert and context parts.
        dtype: of weights and activations while learning; the optimizer always works on float32 weights.
        recompute: activations inside a layer are made again in the backward pass instead of being kept.
        lr: learning rate, a number or knots [[step, value], ...].
        max_grad_norm: global gradient norm to clip to, a number or knots.
        router_aux_coef: weight of the router's load-balancing loss during RL.
        max_row_tokens: longest packed row; bounds the memory of one forward and backward pass.
        num_threads: torch threads of each of the learner's processes.
        device: "cpu", "cuda" or "cuda:0".
        exchange_seconds: how long a rank waits for another inside an update before it gives up.
        optimizer: AdamW's settings.
    """

    kind: str = "local"
    num_ranks: int = 1
    copies: str = "whole"
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    layout: Layout = field(default_factory=Layout)
    dtype: str = "float32"
    recompute: bool = False
    lr: Schedule = 1e-4
    max_grad_norm: Schedule = 1.0
    router_aux_coef: float = 0.0
    max_row_tokens: int = 8192
    num_threads: int = 1
    device: str = "cpu"
    exchange_seconds: float = 600.0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        faults = [
            f"learner.{name} must be one of {', '.join(choices)}; got {value!r}."
            for name, value, choices in (
                ("kind", self.kind, KINDS),
                ("copies", self.copies, COPIES),
                ("dtype", self.dtype, DTYPES),
            )
            if value not in choices
        ]
        if min(self.max_row_tokens, self.num_threads, self.num_ranks) < 1:
            faults.append(
                f"learner.max_row_tokens, num_threads and num_ranks must be at least 1; "
                f"got {self.max_row_tokens}, {self.num_threads} and {self.num_ranks}."
            )
        if self.exchange_seconds <= 0:
            faults.append(f"learner.exchange_seconds must be positive; got {self.exchange_seconds:g}.")
        if self.kind != "local" and self.copies != "whole":
            faults.append(f"learner.copies belongs to learner.kind=local; got it with learner.kind={self.kind}.")
        if self.kind != "megatron" and self.layout != Layout():
            faults.append(f"learner.layout belongs to learner.kind=megatron; got it with learner.kind={self.kind}.")
        if (self.kind, self.dtype, self.deepspeed.stage) == ("deepspeed", "bfloat16", 0):
            faults.append(
                "learner.deepspeed.stage must be 1, 2 or 3 with learner.dtype=bfloat16, because DeepSpeed keeps no "
                "float32 weights at stage 0; or take learner.kind=local, which copies everything on each rank, too."
            )
        faults += faults_of(check_schedule, "learner.lr", self.lr, least=0.0)
        faults += faults_of(check_schedule, "learner.max_grad_norm", self.max_grad_norm, least=1e-12)
        if faults:
            raise ConfigError(*faults)

    @property
    def num_shards(self) -> int:
        """Ranks that learn from different rows: all, but for those that hold parts of one copy together."""
        return max(1, self.num_ranks // self.layout.ranks_per_copy)

    def shard_of(self, rank: int) -> int:
        """Which shard of an update's rows rank `rank` learns from; tensor and context ranks are neighbours."""
        return rank // (self.layout.tensor * self.layout.context) % self.num_shards
