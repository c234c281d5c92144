"""The machinery of compiled twins: threads, products by oneDNN, an exponential, freed memory, small helpers."""
