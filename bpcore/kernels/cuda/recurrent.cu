// LSTM and GRU: what one token t needs beside its product with the state, for all examples and the k entries of the state.
// Launched by `each` over the n k entries i. of_h (n, gates k) is the product; sequences are (n, tokens, ...).

#define ROW (i / k * tokens + t)  // of a sequence
#define AT(x, many) ((x) + ROW * (many) * k + i % k)  // the entry of a sequence whose rows have `many` parts of length k
#define OF_H(part, many) of_h[(i / k * (many) + (part)) * k + i % k]

__device__ inline A squash(A z) { return flush(tanh(z)); }

// gates: z W before, the gates after. cell: c in the precision of computation, of the token before and then of this one.
extern "C" __global__ void lstm(Int count, Int k, Int tokens, Int t, const A *of_h, const T *b, T *gates, A *cell, T *c, T *h)
{
    EACH(i, count) {
        T *gate = AT(gates, 4);
        A x[4];
        for (int q = 0; q < 4; q++) x[q] = A(gate[q * k]) + A(b[q * k + i % k]) + OF_H(q, 4);
        for (int q = 0; q < 4; q++) gate[q * k] = T(x[q] = q == 2 ? squash(x[q]) : logistic(x[q]));
        cell[i] = x[1] * cell[i] + x[0] * x[2];
        *AT(c, 1) = T(cell[i]);
        *AT(h, 1) = T(x[3] * tanh(cell[i]));
    }
}

// of_h: da U^T of the token after. cell: dc that comes from it, and then what goes to the token before.
extern "C" __global__ void lstm_backward(Int count, Int k, Int tokens, Int t, const A *of_h, const T *gates, const T *c, const T *v,
                                         A *cell, T *da)
{
    EACH(i, count) {
        const T *gate = AT(gates, 4);
        T *a = AT(da, 4);
        const A in = A(gate[0]), f = A(gate[k]), g = A(gate[2 * k]), o = A(gate[3 * k]), squashed = tanh(A(*AT(c, 1)));
        const A before = t ? A(*(AT(c, 1) - k)) : A(0), dh = A(*AT(v, 1)) + of_h[i];
        const A dc = cell[i] + dh * o * (1 - squashed * squashed);
        a[0] = T(flush(dc * g * in * (1 - in)));
        a[k] = T(flush(dc * before * f * (1 - f)));
        a[2 * k] = T(flush(dc * in * (1 - g * g)));
        a[3 * k] = T(flush(dh * squashed * o * (1 - o)));
        cell[i] = flush(dc * f);
    }
}

// gates: z W before, in three parts of four; r, s, g and h U + d of g after. state: h in the precision of computation.
extern "C" __global__ void gru(Int count, Int k, Int tokens, Int t, const A *of_h, const T *b, const T *d, T *gates, A *state, T *h)
{
    EACH(i, count) {
        T *gate = AT(gates, 4);
        A of_z[3], with_h[3];
        for (int q = 0; q < 3; q++) {
            of_z[q] = A(gate[q * k]) + A(b[q * k + i % k]);
            with_h[q] = OF_H(q, 3) + A(d[q * k + i % k]);
        }
        const A r = logistic(of_z[0] + with_h[0]), s = logistic(of_z[1] + with_h[1]), g = squash(of_z[2] + r * with_h[2]);
        state[i] = (1 - s) * g + s * state[i];
        gate[0] = T(r);
        gate[k] = T(s);
        gate[2 * k] = T(g);
        gate[3 * k] = T(with_h[2]);
        *AT(h, 1) = T(state[i]);
    }
}

// of_h: da_h U^T of the token after. state: dh that comes from it by s, and then what goes to the token before.
extern "C" __global__ void gru_backward(Int count, Int k, Int tokens, Int t, const A *of_h, const T *gates, const T *h, const T *v,
                                        A *state, T *da_z, T *da_h)
{
    EACH(i, count) {
        const T *gate = AT(gates, 4);
        T *a_z = AT(da_z, 3), *a_h = AT(da_h, 3);
        const A r = A(gate[0]), s = A(gate[k]), g = A(gate[2 * k]), of_g = A(gate[3 * k]);
        const A before = t ? A(*(AT(h, 1) - k)) : A(0), dh = A(*AT(v, 1)) + (state[i] + of_h[i]);
        const A dg = dh * (1 - s) * (1 - g * g);
        a_z[0] = a_h[0] = T(flush(dg * of_g * r * (1 - r)));
        a_z[k] = a_h[k] = T(flush(dh * (before - g) * s * (1 - s)));
        a_z[2 * k] = T(flush(dg));
        a_h[2 * k] = T(flush(dg * r));
        state[i] = dh * s;
    }
}
