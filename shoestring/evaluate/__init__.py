"""Scores a trained model and the yardsticks beside it, for every job."""
