// Images (n, h, w, c) and a kernel placed on them. One thread computes each entry of a result. Arrays have fewer than 2^31
// entries: indices have 32 bits, because their division is four times as fast.

typedef unsigned Index;

// A kernel's placement: kernel, stride, dilation, padding before, image, places; see Placement in functional/convolution.py.
#define PLACEMENT Int kh, Int kw, Int sh, Int sw, Int dh, Int dw, Int top, Int left, Int h, Int w, Int c, Int ph, Int pw

struct Place { int n, y, x; Index channel; };

// The place of entry i in an array (n, ph, pw, c).
__device__ inline Place place_of(Index i, Index ph, Index pw, Index c)
{
    const Index of_row = i / c, of_image = of_row / pw;
    return {int(of_image / ph), int(of_image % ph), int(of_row % pw), i % c};
}

#define AT(array, n, y, x, height, width, channel) \
    array[((Index(n) * Index(height) + Index(y)) * Index(width) + Index(x)) * Index(c) + channel]

// Executes `add` for each place (y, x) at which entry (i, j) of the kernel lies on the pixel p.
#define PLACES_ON(p, add) \
    for (int i = 0; i < kh; i++) { \
        const int down = p.y + int(top) - i * int(dh), y = down / int(sh); \
        if (down < 0 || down % int(sh) || y >= ph) continue; \
        for (int j = 0; j < kw; j++) { \
            const int right = p.x + int(left) - j * int(dw), x = right / int(sw); \
            if (right >= 0 && right % int(sw) == 0 && x < pw) add; \
        } \
    }
