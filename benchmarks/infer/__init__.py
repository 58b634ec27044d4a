"""Batch inference measured: ours against naive loops, Ray Data and multiprocessing, and under kills."""
