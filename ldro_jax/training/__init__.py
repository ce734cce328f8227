"""Training: state, steps, loop, checkpoints and experiments."""
