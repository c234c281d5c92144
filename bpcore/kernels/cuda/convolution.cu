// The pixels that a kernel sees at each place, and the adjoint of gathering them.

// seen (n, ph, pw, kh, kw, c): the pixels of z (n, h, w, c) that the kernel sees at each place, zero in the padding.
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

// dz (n, h, w, c): for each pixel, the sum of v (n, ph, pw, kh, kw, c) over the entries to which `columns` copies the pixel.
extern "C" __global__ void spread(Int count, PLACEMENT, const T *v, T *dz)
{
    EACH(k, count) {
        const Place p = place_of(Index(k), h, w, c);
        A sum = 0;
        const Index image = Index(p.n) * Index(ph);
        PLACES_ON(p, sum += A(v[(((image + y) * Index(pw) + x) * Index(kh * kw) + i * Index(kw) + j) * Index(c) + p.channel]))
        dz[k] = T(sum);
    }
}
