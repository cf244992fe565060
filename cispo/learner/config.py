"""What every learner is configured by, whichever library it uses."""

from __future__ import annotations

from dataclasses import dataclass, field

from cispo.errors import ConfigError
from cispo.optimizer import OptimizerConfig
from cispo.schedule import Schedule, check_schedule

KINDS = ("local",)


@dataclass(frozen=True)
class LearnerConfig:
    """How the policy is updated.

    Attributes:
        kind: which backend; "local" is torch in one process.
        lr: learning rate, a number or knots [[step, value], ...].
        max_grad_norm: global gradient norm to clip to, a number or knots.
        router_aux_coef: weight of the router's load-balancing loss during RL.
        max_row_tokens: longest packed row; bounds the memory of one forward and backward pass.
        num_threads: torch threads of the learner's process.
        device: "cpu", "cuda" or "cuda:0".
        optimizer: AdamW's settings.
    """

    kind: str = "local"
    lr: Schedule = 1e-4
    max_grad_norm: Schedule = 1.0
    router_aux_coef: float = 0.0
    max_row_tokens: int = 8192
    num_threads: int = 1
    device: str = "cpu"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"learner.kind must be one of {', '.join(KINDS)}; got {self.kind!r}.")
        check_schedule("learner.lr", self.lr, least=0.0)
        check_schedule("learner.max_grad_norm", self.max_grad_norm, least=1e-12)
        if self.max_row_tokens < 1 or self.num_threads < 1:
            raise ConfigError(
                f"learner.max_row_tokens and learner.num_threads must be at least 1; "
                f"got {self.max_row_tokens} and {self.num_threads}."
            )
