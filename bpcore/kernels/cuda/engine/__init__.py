"""The machinery of CUDA twins: launches of kernels, products by cuBLAS, sums, CUDA graphs."""
