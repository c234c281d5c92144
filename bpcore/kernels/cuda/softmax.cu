// Softmax over rows of n entries, one team of threads for each row.

extern "C" __global__ void __launch_bounds__(1024) softmax(Int rows, Int n, const T *z, T *u)
{
    const Int row = team_row(), m = row < rows ? n : 0, from = row * n;
    A largest = -INFINITE, total = 0;
    TEAM(j, m) largest = fmax(largest, A(z[from + j]));
    largest = team_max(largest);
    TEAM(j, m) total += exp(A(z[from + j]) - largest);
    total = team_sum(total);
    TEAM(j, m) u[from + j] = T(flush(exp(A(z[from + j]) - largest) / total));
}

extern "C" __global__ void __launch_bounds__(1024) softmax_backward(Int rows, Int n, const T *u, const T *v, T *dz)
{
    const Int row = team_row(), m = row < rows ? n : 0, from = row * n;
    A total = 0;
    TEAM(j, m) total += A(u[from + j]) * A(v[from + j]);
    total = team_sum(total);
    TEAM(j, m) dz[from + j] = T(flush(A(u[from + j]) * (A(v[from + j]) - total)));
}

extern "C" __global__ void __launch_bounds__(1024) log_softmax(Int rows, Int n, const T *z, T *u)
{
    const Int row = team_row(), m = row < rows ? n : 0, from = row * n;
    A largest = -INFINITE, total = 0;
    TEAM(j, m) largest = fmax(largest, A(z[from + j]));
    largest = team_max(largest);
    TEAM(j, m) total += exp(A(z[from + j]) - largest);
    total = log(team_sum(total));
    TEAM(j, m) u[from + j] = T(A(z[from + j]) - largest - total);
}

extern "C" __global__ void __launch_bounds__(1024) log_softmax_backward(Int rows, Int n, const T *u, const T *v, T *dz)
{
    const Int row = team_row(), m = row < rows ? n : 0, from = row * n;
    A total = 0;
    TEAM(j, m) total += A(v[from + j]);
    total = team_sum(total);
    TEAM(j, m) dz[from + j] = T(flush(A(v[from + j]) - exp(A(u[from + j])) * total));
}
