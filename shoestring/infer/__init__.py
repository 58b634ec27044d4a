"""Runs trained models: decoding with a KV cache."""
