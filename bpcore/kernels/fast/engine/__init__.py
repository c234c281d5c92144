"""The machinery of compiled twins: threads, products by oneDNN, an exponential, memory."""
