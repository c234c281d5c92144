// Softmax over rows of n entries, one team of threads for each row.

// u = f(z - largest, g(total)), where total is the sum of exp(z - largest) over the row.
template <class F, class G> __device__ inline void forward(Int rows, Int n, const T *z, T *u, F f, G g)
{
    widely(n % WIDE == 0 && aligned(z, u), [&](auto w) {
        constexpr int W = w.value;
        const Int row = team_row(), m = row < rows ? n : 0, from = row * n;
        const A largest = largest_of<W>(z + from, m);
        A total = 0;
        TEAM_WIDE(j, m) {
            const Pack<W, A> x = read<W>(z + from + j);
            WITHIN(k) total += exp(x.at[k] - largest);
        }
        total = g(team_sum(total));
        TEAM_WIDE(j, m) write(u + from + j, mapped([&](A x) { return f(x - largest, total); }, read<W>(z + from + j)));
    });
}

// dz = f(u, v, total), where total is the sum of g(u, v) over the row.
template <class F, class G> __device__ inline void backward(Int rows, Int n, const T *u, const T *v, T *dz, F f, G g)
{
    widely(n % WIDE == 0 && aligned(u, v, dz), [&](auto w) {
        constexpr int W = w.value;
        const Int row = team_row(), m = row < rows ? n : 0, from = row * n;
        A total = 0;
        TEAM_WIDE(j, m) {
            const Pack<W, A> terms = mapped(g, read<W>(u + from + j), read<W>(v + from + j));
            WITHIN(k) total += terms.at[k];
        }
        total = team_sum(total);
        const auto of_total = [&](A u, A v) { return f(u, v, total); };
        TEAM_WIDE(j, m) write(dz + from + j, mapped(of_total, read<W>(u + from + j), read<W>(v + from + j)));
    });
}

extern "C" __global__ void __launch_bounds__(1024) softmax(Int rows, Int n, const T *z, T *u)
{
    forward(rows, n, z, u, [](A x, A total) { return flush(exp(x) / total); }, [](A total) { return total; });
}

extern "C" __global__ void __launch_bounds__(1024) softmax_backward(Int rows, Int n, const T *u, const T *v, T *dz)
{
    backward(rows, n, u, v, dz, [](A u, A v, A total) { return flush(u * (v - total)); }, [](A u, A v) { return u * v; });
}

extern "C" __global__ void __launch_bounds__(1024) log_softmax(Int rows, Int n, const T *z, T *u)
{
    forward(rows, n, z, u, [](A x, A total) { return x - total; }, [](A total) { return log(total); });
}

extern "C" __global__ void __launch_bounds__(1024) log_softmax_backward(Int rows, Int n, const T *u, const T *v, T *dz)
{
    backward(rows, n, u, v, dz, [](A u, A v, A total) { return flush(v - exp(u) * total); }, [](A u, A v) { return v; });
}
