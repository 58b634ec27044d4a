"""The ledger of samples, its durable store, sources and readers of data."""
