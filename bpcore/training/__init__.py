"""Training: the loop, its step, and data, metrics, callbacks and history."""
