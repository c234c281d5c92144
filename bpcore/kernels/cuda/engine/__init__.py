"""The machinery of CUDA twins: launches, products by cuBLAS, sums, graphs."""
