"""Model code that knows one device only; no collectives, no processes (torch)."""
