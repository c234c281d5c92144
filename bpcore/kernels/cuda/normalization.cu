// LayerNorm, RMSNorm and GroupNorm: one team of threads for each group of entries. z is (n, between, groups, width): group g of
// example i has `between` runs of `width` entries. For LayerNorm and RMSNorm, an example has one group with one run.

#define GROUP(e) TEAM(e, size)
#define PLACE(e) (from + (between == 1 ? e : e / width * (groups * width) + e % width))
#define CHANNEL(e) (first + (between == 1 ? e : e % width))
#define CENTRED(e) (A(z[PLACE(e)]) - start - centre)

// x = (z - start - mean) scale, where start is the first entry of the group; u = gamma x + beta. For RMSNorm mean and beta are null,
// and count as 0, as does start.
extern "C" __global__ void __launch_bounds__(1024) normalize(Int teams, Int between, Int groups, Int width, const T *z,
                                                             const T *gamma, const T *beta, double eps, T *u, A *mean, A *scale)
{
    const Int team = team_row(), size = team < teams ? between * width : 0;
    const Int first = team % groups * width, from = team / groups * (between * groups * width) + first;
    const A start = mean && size ? A(z[from]) : A(0);
    A centre = 0, square = 0;
    if (mean) {
        A sum = 0;
        GROUP(e) sum += CENTRED(e);
        centre = team_sum(sum) / (between * width);
    }
    GROUP(e) square += CENTRED(e) * CENTRED(e);
    square = team_sum(square);
    A factor = 1 / sqrt(square / (between * width) + A(eps));
    if (any_in_warp(!(square < INFINITE))) {  // squares overflow: scale the entries down first
        A largest = 1;
        GROUP(e) largest = fmax(largest, fabs(CENTRED(e)));
        largest = team_max(largest);
        square = 0;
        GROUP(e) square += CENTRED(e) / largest * (CENTRED(e) / largest);
        factor = 1 / (largest * sqrt(team_sum(square) / (between * width) + A(eps) / largest / largest));
    }
    GROUP(e) {
        const A x = CENTRED(e) * factor, shift = beta ? A(beta[CHANNEL(e)]) : A(0);
        u[PLACE(e)] = T(A(gamma[CHANNEL(e)]) * x + shift);
    }
    if (threadIdx.x == 0 && team < teams) {
        if (mean) mean[team] = centre;
        scale[team] = factor;
    }
}

// dz = scale (w - mean(w) - x mean(w x)) with w = gamma v; if mean is null, without the term mean(w).
extern "C" __global__ void __launch_bounds__(1024) normalize_backward(Int teams, Int between, Int groups, Int width, const T *z,
                                                                      const A *mean, const A *scale, const T *gamma, const T *v,
                                                                      T *dz)
{
    const Int team = team_row(), size = team < teams ? between * width : 0;
    const Int first = team % groups * width, from = team / groups * (between * groups * width) + first;
    const A centre = mean && size ? A(mean[team]) : A(0), factor = size ? A(scale[team]) : A(0);
    const A start = mean && size ? A(z[from]) : A(0);
    A w_sum = 0, wx_sum = 0;
    GROUP(e) {
        const A w = A(gamma[CHANNEL(e)]) * A(v[PLACE(e)]);
        w_sum += w;
        wx_sum += w * (CENTRED(e) * factor);
    }
    w_sum = mean ? team_sum(w_sum) / (between * width) : A(0);
    wx_sum = team_sum(wx_sum) / (between * width);
    GROUP(e) {
        const A w = A(gamma[CHANNEL(e)]) * A(v[PLACE(e)]), x = CENTRED(e) * factor;
        dz[PLACE(e)] = T(factor * (w - w_sum - x * wx_sum));
    }
}
