// Maximum and mean of the pixels that a kernel sees at each place.

// u (n, ph, pw, c): the maximum at each place, where padding is -infinity. first: the first entry of the kernel that has it, or is
// NaN; kh kw, which is no entry, if a place sees nothing but padding.
extern "C" __global__ void max_pool(Int count, PLACEMENT, const T *z, T *u, int *first)
{
    EACH(k, count) {
        const Place p = place_of(Index(k), ph, pw, c);
        A largest = -INFINITE;
        const int missing = int(kh * kw);
        int at = missing;
        for (int i = 0; i < kh; i++)
            for (int j = 0; j < kw; j++) {
                const int y = p.y * int(sh) + i * int(dh) - int(top), x = p.x * int(sw) + j * int(dw) - int(left);
                if (y < 0 || y >= h || x < 0 || x >= w) continue;
                const A entry = A(AT(z, p.n, y, x, h, w, p.channel));
                if (at == missing || entry > largest || (entry != entry && largest == largest)) {
                    largest = entry;
                    at = i * int(kw) + j;
                }
            }
        u[k] = T(largest);
        first[k] = at;
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
