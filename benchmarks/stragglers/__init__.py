"""Training among stragglers: ours against static splits and other tools, under CPU quotas."""
