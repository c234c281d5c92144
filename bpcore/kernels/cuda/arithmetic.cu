extern "C" __global__ void add(Int n, const T *a, const T *b, T *u)
{
    map(n, u, [](A a, A b) { return a + b; }, a, b);
}
