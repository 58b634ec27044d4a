"""Parameter servers: shards of parameters and optimizer state, and workers that borrow them."""
