"""Jobs: a task, its inputs, its loss; independent of one another."""
