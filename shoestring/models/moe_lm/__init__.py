"""A decoder-only mixture-of-experts language model in the manner of Ling Lite and Plus (arXiv 2503.05139)."""
