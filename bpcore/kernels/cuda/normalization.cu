// LayerNorm, RMSNorm and GroupNorm: one team of threads for each group of entries. z is (n, between, groups, width): group g of
// example i has `between` runs of `width` entries. For LayerNorm and RMSNorm, an example has one group with one run.

// A run of `width` entries at `from`, or `between` runs, each groups * width after the one before.
struct Group { Int from, between, groups, width; };

__device__ inline Int place(const Group &g, Int i)
{
    return g.from + (g.between == 1 ? i : i / g.width * (g.groups * g.width) + i % g.width);
}

// The group of a team in z.
__device__ inline Group group_of(Int team, Int between, Int groups, Int width)
{
    return {team / groups * (between * groups * width) + team % groups * width, between, groups, width};
}

// Its channels in gamma: the same ones in each run.
__device__ inline Group channels_of(Int team, Int between, Int groups, Int width)
{
    return {team % groups * width, between, 0, width};
}

#define GROUP(i) TEAM_WIDE(i, size)
#define CENTRED(i) mapped([&](A z) { return z - start - centre; }, read<W>(z + place(group, i)))

// Adds up a term for each entry x.at[k] of the group.
#define SUM(total, term) GROUP(i) { const Pack<W, A> x = CENTRED(i); WITHIN(k) total += term; }

// x = (z - start - mean) scale, where start is the first entry of the group; u = gamma x + beta. For RMSNorm mean and beta are
// null, and count as 0, as does start.
extern "C" __global__ void __launch_bounds__(1024) normalize(Int teams, Int between, Int groups, Int width, const T *z,
                                                             const T *gamma, const T *beta, double eps, T *u, A *mean, A *scale)
{
    const Int team = team_row(), size = team < teams ? between * width : 0;
    const Group group = group_of(team, between, groups, width), channels = channels_of(team, between, groups, width);
    const A start = mean && size ? A(z[group.from]) : A(0), count = A(between * width);
    widely(width % WIDE == 0 && aligned(z, gamma, beta, u), [&](auto w) {
        constexpr int W = w.value;
        A centre = 0, square = 0;
        if (mean) {
            A sum = 0;
            SUM(sum, x.at[k])
            centre = team_sum(sum) / count;
        }
        SUM(square, x.at[k] * x.at[k])
        square = team_sum(square);
        A factor = 1 / sqrt(square / count + A(eps));
        if (any_in_warp(!(square < INFINITE))) {  // squares overflow: scale the entries down first
            A largest = 1;
            GROUP(i) {
                const Pack<W, A> x = CENTRED(i);
                WITHIN(k) largest = fmax(largest, fabs(x.at[k]));
            }
            largest = team_max(largest);
            square = 0;
            SUM(square, x.at[k] / largest * (x.at[k] / largest))
            factor = 1 / (largest * sqrt(team_sum(square) / count + A(eps) / largest / largest));
        }
        GROUP(i) {
            const Int j = place(channels, i);
            const Pack<W, A> g = read<W>(gamma + j), shift = beta ? read<W>(beta + j) : Pack<W, A>{};
            write(u + place(group, i), mapped([&](A x, A g, A shift) { return g * (x * factor) + shift; }, CENTRED(i), g, shift));
        }
        if (threadIdx.x == 0 && team < teams) {
            if (mean) mean[team] = centre;
            scale[team] = factor;
        }
    });
}

// dz = scale (w - mean(w) - x mean(w x)) with w = gamma v; if mean is null, without the term mean(w). Unless plus is null, dz + plus.
extern "C" __global__ void __launch_bounds__(1024) normalize_backward(Int teams, Int between, Int groups, Int width, const T *z,
                                                                      const A *mean, const A *scale, const T *gamma, const T *v,
                                                                      const T *plus, T *dz)
{
    const Int team = team_row(), size = team < teams ? between * width : 0;
    const Group group = group_of(team, between, groups, width), channels = channels_of(team, between, groups, width);
    const A centre = mean && size ? A(mean[team]) : A(0), factor = size ? A(scale[team]) : A(0);
    const A start = mean && size ? A(z[group.from]) : A(0), count = A(between * width);
    widely(width % WIDE == 0 && aligned(z, gamma, v, plus, dz), [&](auto w) {
        constexpr int W = w.value;
        A gv_sum = 0, gvx_sum = 0;
        GROUP(i) {
            const Pack<W, A> x = CENTRED(i), g = read<W>(gamma + place(channels, i)), v_i = read<W>(v + place(group, i));
            WITHIN(k) {
                gv_sum += g.at[k] * v_i.at[k];
                gvx_sum += g.at[k] * v_i.at[k] * (x.at[k] * factor);
            }
        }
        gv_sum = mean ? team_sum(gv_sum) / count : A(0);
        gvx_sum = team_sum(gvx_sum) / count;
        GROUP(i) {
            const auto f = [&](A x, A g, A v, A more) {
                const A dz = factor * (g * v - gv_sum - x * factor * gvx_sum);
                return plus ? dz + more : dz;
            };
            const Int j = place(group, i);
            const Pack<W, A> g = read<W>(gamma + place(channels, i)), more = plus ? read<W>(plus + j) : Pack<W, A>{};
            write(dz + j, mapped(f, CENTRED(i), g, read<W>(v + j), more));
        }
    });
}
