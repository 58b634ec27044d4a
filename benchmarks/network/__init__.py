"""Training over slow links: every strategy, the peers, the rings, the planner, parity and recovery."""
