"""Who does the work: coordinator, membership, and the transports that carry their messages."""
