"""What there is and what it would cost: facts and predictions about machines, no I/O but files."""
