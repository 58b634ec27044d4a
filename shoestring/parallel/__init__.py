"""Process groups, exchange of gradients and state, checkpoints of tensors."""
