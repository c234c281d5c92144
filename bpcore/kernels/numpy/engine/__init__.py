"""The machinery of NumPy's twins: blocks of long vectors, and convolution of channels."""
