// Maximum and mean of the pixels that a kernel sees at each place.

// u (n, ph, pw, c): the maximum at each place, where padding is -infinity. first: the first entry of the kernel that has it. If a
// place sees a NaN, u is NaN and first is kh kw, which is no entry.
extern "C" __global__ void max_pool(Int count, PLACEMENT, const T *z, T *u, int *first)
{
    EACH(k, count) {
        const Place p = place_of(Index(k), ph, pw, c);
        A largest = -INFINITE;
        const int missing = kh * kw;
        int at = missing;
        bool nan = false;
        for (int i = 0; i < kh; i++)
            for (int j = 0; j < kw; j++) {
                const int y = p.y * int(sh) + i * int(dh) - int(top), x = p.x * int(sw) + j * int(dw) - int(left);
                const A entry = y >= 0 && y < h && x >= 0 && x < w ? A(AT(z, p.n, y, x, h, w, p.channel)) : -INFINITE;
                nan = nan || entry != entry;
                if (entry > largest || (entry == largest && at == missing)) {
                    largest = entry;
                    at = i * int(kw) + j;
                }
            }
        u[k] = T(nan ? A(__int_as_float(0x7fc00000)) : largest);
        first[k] = nan ? missing : at;
    }
}

extern "C" __global__ void max_pool_backward(Int count, PLACEMENT, const int *first, const T *v, T *dz)
{
    EACH(k, count) {
        const Place p = place_of(Index(k), h, w, c);
        A sum = 0;
        PLACES_ON(p, if (AT(first, p.n, y, x, ph, pw, p.channel) == i * int(kw) + j)
                         sum += A(AT(v, p.n, y, x, ph, pw, p.channel)))
        dz[k] = T(sum);
    }
}

// u (n, ph, pw, c): the mean at each place, where padding is zero.
extern "C" __global__ void avg_pool(Int count, PLACEMENT, const T *z, T *u)
{
    EACH(k, count) {
        const Place p = place_of(Index(k), ph, pw, c);
        A sum = 0;
        for (int i = 0; i < kh; i++)
            for (int j = 0; j < kw; j++) {
                const int y = p.y * int(sh) + i * int(dh) - int(top), x = p.x * int(sw) + j * int(dw) - int(left);
                if (y >= 0 && y < h && x >= 0 && x < w) sum += A(AT(z, p.n, y, x, h, w, p.channel));
            }
        u[k] = T(sum / A(kh * kw));
    }
}

extern "C" __global__ void avg_pool_backward(Int count, PLACEMENT, const T *v, T *dz)
{
    EACH(k, count) {
        const Place p = place_of(Index(k), h, w, c);
        A sum = 0;
        PLACES_ON(p, sum += A(AT(v, p.n, y, x, ph, pw, p.channel)))
        dz[k] = T(sum / A(kh * kw));
    }
}
