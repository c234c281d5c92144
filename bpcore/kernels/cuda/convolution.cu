// What each place of a kernel sees, and back.

// seen (n, ph, pw, kh, kw, c): what each place sees, zero in the padding.
extern "C" __global__ void columns(Int count, PLACEMENT, const T *z, T *seen)
{
    EACH(i, count) {
        const Index of_entry = Index(i) / Index(c), channel = Index(i) % Index(c), entry = of_entry % Index(kh * kw);
        const Place p = place_of(of_entry / Index(kh * kw), ph, pw, 1);
        const int y = p.y * int(sh) + int(entry / Index(kw)) * int(dh) - int(top);
        const int x = p.x * int(sw) + int(entry % Index(kw)) * int(dw) - int(left);
        seen[i] = y >= 0 && y < h && x >= 0 && x < w ? AT(z, p.n, y, x, h, w, channel) : T(0);
    }
}

// dz (n, h, w, c): the sums of v (n, ph, pw, kh, kw, c) over what `columns` gathered each entry to.
extern "C" __global__ void spread(Int count, PLACEMENT, const T *v, T *dz)
{
    EACH(k, count) {
        const Place p = place_of(Index(k), h, w, c);
        A sum = 0;
        PLACES_ON(p, sum += A(v[(((Index(p.n) * Index(ph) + y) * Index(pw) + x) * Index(kh * kw) + i * Index(kw) + j) * Index(c) + p.channel]))
        dz[k] = T(sum);
    }
}
