"""Monitor -> decide -> act: what is seen of the workers, pure policies, and the agent in the worker."""
