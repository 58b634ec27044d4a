"""A seeded fake cluster on a virtual clock that runs the real ledger, membership, monitor and controller."""
