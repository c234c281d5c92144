// Images (n, h, w, c) and windows on them, each entry of a result gathered by one thread. Fewer than 2^31 entries: indices are
// in 32 bits, whose division is four times as quick.

typedef unsigned Index;

// A window's kernel, stride, dilation, the padding before, the image and the places; see functional/convolution.py
#define WINDOW Int kh, Int kw, Int sh, Int sw, Int dh, Int dw, Int top, Int left, Int h, Int w, Int c, Int ph, Int pw

struct Place { int n, y, x; Index channel; };

// The place (of an output) of entry i in (n, ph, pw, c).
__device__ inline Place place_of(Index i, Index ph, Index pw, Index c)
{
    const Index of_row = i / c, of_image = of_row / pw;
    return {int(of_image / ph), int(of_image % ph), int(of_row % pw), i % c};
}

#define AT(array, n, y, x, height, width, channel) array[((Index(n) * Index(height) + Index(y)) * Index(width) + Index(x)) * Index(c) + channel]

// seen (n, ph, pw, kh, kw, c): what each place sees, zero in the padding.
extern "C" __global__ void columns(Int count, WINDOW, const T *z, T *seen)
{
    EACH(i, count) {
        const Index of_entry = Index(i) / Index(c), channel = Index(i) % Index(c), entry = of_entry % Index(kh * kw);
        const Place p = place_of(of_entry / Index(kh * kw), ph, pw, 1);
        const int y = p.y * int(sh) + int(entry / Index(kw)) * int(dh) - int(top);
        const int x = p.x * int(sw) + int(entry % Index(kw)) * int(dw) - int(left);
        seen[i] = y >= 0 && y < h && x >= 0 && x < w ? AT(z, p.n, y, x, h, w, channel) : T(0);
    }
}

// Calls `add` for each place (y, x) whose entry (i, j) lies on the pixel `p`.
#define PLACES_ON(p, add) \
    for (int i = 0; i < kh; i++) { \
        const int down = p.y + int(top) - i * int(dh), y = down / int(sh); \
        if (down < 0 || down % int(sh) || y >= ph) continue; \
        for (int j = 0; j < kw; j++) { \
            const int right = p.x + int(left) - j * int(dw), x = right / int(sw); \
            if (right >= 0 && right % int(sw) == 0 && x < pw) add; \
        } \
    }

// dz (n, h, w, c): the sums of v (n, ph, pw, kh, kw, c) over what `columns` gathered each entry to.
extern "C" __global__ void spread(Int count, WINDOW, const T *v, T *dz)
{
    EACH(k, count) {
        const Place p = place_of(Index(k), h, w, c);
        A sum = 0;
        PLACES_ON(p, sum += A(v[(((Index(p.n) * Index(ph) + y) * Index(pw) + x) * Index(kh * kw) + i * Index(kw) + j) * Index(c) + p.channel]))
        dz[k] = T(sum);
    }
}

// u (n, ph, pw, c): the maximum of each place, the padding being -infinity; first: the first entry that has it. NaN is the
// maximum of what has one, and no entry has that.
extern "C" __global__ void max_pool(Int count, WINDOW, const T *z, T *u, int *first)
{
    EACH(k, count) {
        const Place p = place_of(Index(k), ph, pw, c);
        A largest = -INFINITE;
        int at = kh * kw, missing = kh * kw;  // the first entry that has -infinity, and whether one is NaN
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

extern "C" __global__ void max_pool_backward(Int count, WINDOW, const int *first, const T *v, T *dz)
{
    EACH(k, count) {
        const Place p = place_of(Index(k), h, w, c);
        A sum = 0;
        PLACES_ON(p, if (AT(first, p.n, y, x, ph, pw, p.channel) == i * int(kw) + j) sum += A(AT(v, p.n, y, x, ph, pw, p.channel)))
        dz[k] = T(sum);
    }
}

// u (n, ph, pw, c): the mean of each place, the padding being zero.
extern "C" __global__ void avg_pool(Int count, WINDOW, const T *z, T *u)
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

extern "C" __global__ void avg_pool_backward(Int count, WINDOW, const T *v, T *dz)
{
    EACH(k, count) {
        const Place p = place_of(Index(k), h, w, c);
        A sum = 0;
        PLACES_ON(p, sum += A(AT(v, p.n, y, x, ph, pw, p.channel)))
        dz[k] = T(sum / A(kh * kw));
    }
}
