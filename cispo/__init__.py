"""The algorithm, the learner and the loop; imports neither ray nor hydra nor wandb."""
