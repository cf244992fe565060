"""The policy over many ranks, from megatron-core's parts: the same function of the same weights as HybridLM.

Layouts cut it into tensor, pipeline, expert and context parts (model/layout.py); ranks that are left learn from other
rows. Every rank of torch.distributed runs the same program:

    place = initialise_ranks(config, layout)                # process groups
    stages = build_stages(stage_config(config, layout))     # what this rank holds of the model, weights 0
    optimizer = StageOptimizer(stages, weight_decay=0.1)
    weights = ParallelWeights(stages)
    weights.load(stream, optimizer)                         # or load_folder(weights, folder, optimizer)

    def objective(learnt):                                  # of one row, on ranks with the last stage only
        loss, logp_a, entropy_a = learnt.head.weighted_logp(
            learnt.hidden_aD, tokens[learnt.index][learnt.places_a], coefficients, temperature
        )
        return -loss, logp_a

    results = forward_backward(stages, rows, objective)     # rows: TokenRows of data rank place.data_rank
    norm = optimizer.clip(max_grad_norm)
    optimizer.step(lr)                                      # or leave it out
    for name, tensor in weights.stream():                   # whole tensors in checkpoint names, on every rank
        ...
    save_checkpoint(stages, optimizer, folder)              # load_checkpoint under any layout
    export_folder(weights, folder)                          # in Hugging Face layout

Losses add up: an update's is the sum over rows, data ranks and context ranks of what the objective returns, and so is
its gradient. All calls above are collective: every rank makes them, in the same order.
"""

from model.megatron.checkpoint import export_folder, load_checkpoint, load_folder, save_checkpoint
from model.megatron.config import StageConfig, stage_config
from model.megatron.optimizer import StageOptimizer
from model.megatron.ranks import Place, forget_ranks, initialise_ranks
from model.megatron.row import TokenRow
from model.megatron.schedule import Learnt, Objective, Stages, build_stages, forward, forward_backward
from model.megatron.weights import ParallelWeights

__all__ = [
    "Learnt",
    "Objective",
    "ParallelWeights",
    "Place",
    "StageConfig",
    "StageOptimizer",
    "Stages",
    "TokenRow",
    "build_stages",
    "export_folder",
    "forget_ranks",
    "forward",
    "forward_backward",
    "initialise_ranks",
    "load_checkpoint",
    "load_folder",
    "save_checkpoint",
    "stage_config",
]
