"""RL algorithms as pure functions on tensors; `catalog` is the only dispatch."""
