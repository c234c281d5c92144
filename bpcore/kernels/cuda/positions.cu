// Rotations by positions.

// u (rows, n): each row of z is `tokens` tokens of `width` features, of which the first `rotated` are heads of d features, each
// rotated by the token's position, with angles token exp(pair rate) times sign. The others are copied.
extern "C" __global__ void rotate(Int rows, Int n, const T *z, Int width, Int rotated, Int d, double rate, double sign, T *u)
{
    widely(d % WIDE == 0 && width % WIDE == 0 && aligned(z, u), [&](auto w) {
        constexpr int W = w.value;
        COLUMNS(j, n) {
            const bool turned = j % width < rotated;  // all W, since d is a multiple of W
            Pack<W, A> cosine, sine;
            WITHIN(k) {
                const Int token = (j + k) / width, feature = (j + k) % width;
                const A angle = A(token) * exp(A(feature % d / 2) * A(rate));
                cosine.at[k] = cos(angle);
                sine.at[k] = (feature % 2 ? A(sign) : A(-sign)) * sin(angle);
            }
            ROWS(i, rows) {
                const T *row = z + i * n;
                const Pack<W, A> x = read<W>(row + j);
                Pack<W, A> u_i;
                WITHIN(k) {  // fma, because else a compiler chooses which product is rounded
                    const A other = W == 1 ? A(row[j ^ 1]) : x.at[(k ^ 1) % W];
                    u_i.at[k] = turned ? fma(x.at[k], cosine.at[k], other * sine.at[k]) : x.at[k];
                }
                write(u + i * n + j, u_i);
            }
        }
    });
}
