// Images (n, h, w, c) and a kernel placed on them, each entry of a result gathered by one thread. Fewer than 2^31 entries: indices are
// in 32 bits, whose division is four times as quick.

typedef unsigned Index;

// A kernel's placement: its size, stride, dilation, the padding before, the image and the places; see functional/convolution.py
#define PLACEMENT Int kh, Int kw, Int sh, Int sw, Int dh, Int dw, Int top, Int left, Int h, Int w, Int c, Int ph, Int pw

struct Place { int n, y, x; Index channel; };

// The place (of an output) of entry i in (n, ph, pw, c).
__device__ inline Place place_of(Index i, Index ph, Index pw, Index c)
{
    const Index of_row = i / c, of_image = of_row / pw;
    return {int(of_image / ph), int(of_image % ph), int(of_row % pw), i % c};
}

#define AT(array, n, y, x, height, width, channel) array[((Index(n) * Index(height) + Index(y)) * Index(width) + Index(x)) * Index(c) + channel]

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
