"""CuPy on a CPU, for tests: `cupy` has arrays and kernels, `graphs` streams, pools and CUDA graphs, `cublas` and
`cublaslt` cuBLAS."""
