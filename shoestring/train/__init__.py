"""The only training loop, the Task contract, schedules and optimizers."""
