"""The equations: each function with its backward function under it, one family a file, in pure Array API."""

from bpcore.functional import activations, arithmetic, dropout, linear, losses, normalization, updates

__all__ = ["activations", "arithmetic", "dropout", "linear", "losses", "normalization", "updates"]
