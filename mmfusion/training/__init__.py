"""Training with DeepSpeed: engine, EMA, exact checkpoints, the loop."""
