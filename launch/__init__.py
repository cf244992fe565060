"""From a command line to a running job; the only place that knows ray, hydra and wandb."""
