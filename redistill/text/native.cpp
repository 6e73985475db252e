// The arithmetic of a decode step outside the matrix products: norms, gated activations, attention of one new token a
// row against its slot of the cache, and the draw of a token. Each is one pass over its data; torch takes several, and
// its attention does not reuse a key for the query heads that share it.
//
// Values are float32 or bfloat16 (stored as uint16), sums float32, the distribution function float64. Vectors are GCC's
// portable ones, so any processor will do; every row is computed alone and in one order, so a row's result does not
// depend on its batch (law 10).

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

typedef uint16_t bf16;

template <int W> struct Vector;
template <> struct Vector<16> {
    typedef float f __attribute__((vector_size(64), aligned(4)));
    typedef uint32_t u __attribute__((vector_size(64), aligned(4)));
    typedef uint16_t h __attribute__((vector_size(32), aligned(2)));
};
template <> struct Vector<8> {
    typedef float f __attribute__((vector_size(32), aligned(4)));
    typedef uint32_t u __attribute__((vector_size(32), aligned(4)));
    typedef uint16_t h __attribute__((vector_size(16), aligned(2)));
};

template <int W> inline typename Vector<W>::f load(const float *p) { return *(const typename Vector<W>::f *)p; }
template <int W> inline typename Vector<W>::f load(const bf16 *p) {
    typename Vector<W>::u wide = __builtin_convertvector(*(const typename Vector<W>::h *)p, typename Vector<W>::u);
    return (typename Vector<W>::f)(wide << 16);
}

inline float up(float x) { return x; }
inline float up(bf16 x) {
    uint32_t wide = (uint32_t)x << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}
inline void put(float *p, float x) { *p = x; }
inline void put(bf16 *p, float x) {  // to nearest, ties to even; a NaN stays one
    uint32_t wide;
    memcpy(&wide, &x, 4);
    uint32_t rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
    *p = (uint16_t)(x == x ? rounded : 0x7fc0);
}
template <class T> inline float rounded(float x) {
    T stored;
    put(&stored, x);
    return up(stored);
}

// exp to about 2 ulp (Cody-Waite reduction and a polynomial); below -87 it is 0, above 88 it is exp(88).
inline float exponential(float x) {
    float z = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    float n = z * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to a whole number
    int32_t whole;
    memcpy(&whole, &n, 4);
    n -= 12582912.0f;
    float r = (z - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits;
    memcpy(&bits, &p, 4);
    bits += whole << 23;
    memcpy(&p, &bits, 4);
    return x < -87.0f ? 0.0f : (x == x ? p : x);
}

// Rotate a head's vector to its position (the halves are the two parts of each pair), after its norm if it has one.
template <class T>
inline void placed(const T *x, float *y, int d, const float *cos, const float *sin, const float *norm, float eps) {
    float scratch[512];
    for (int i = 0; i < d; i++) scratch[i] = up(x[i]);
    if (norm) {
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < d; i++) sum += scratch[i] * scratch[i];
        float factor = 1.0f / std::sqrt(sum / d + eps);
        for (int i = 0; i < d; i++) scratch[i] *= factor * norm[i];
    }
    int half = d / 2;
    for (int i = 0; i < half; i++) y[i] = rounded<T>(scratch[i] * cos[i] - scratch[i + half] * sin[i]);
    for (int i = half; i < d; i++) y[i] = rounded<T>(scratch[i] * cos[i] + scratch[i - half] * sin[i]);
}

template <int W> inline float total(typename Vector<W>::f v) {
    for (int step = W / 2; step; step /= 2)
        for (int i = 0; i < step; i++) v[i] += v[i + step];
    return v[0];
}

// One row and one key head: scores of its G query heads over columns first..last, softmax, mean of the values.
template <class T, int W, int G>
void attend_heads(const float *q, const T *k, const T *v, int first, int last, int d, float scale, float *score, T *out) {
    typedef typename Vector<W>::f f;
    int parts = d / W, seen = last - first + 1;
    float top[G];
    for (int g = 0; g < G; g++) top[g] = -INFINITY;
    for (int j = 0; j < seen; j++) {
        const T *key = k + (int64_t)(first + j) * d;
        f sum[G];
        for (int g = 0; g < G; g++) sum[g] = f{};
        for (int p = 0; p < parts; p++) {
            f part = load<W>(key + p * W);
            for (int g = 0; g < G; g++) sum[g] += part * load<W>(q + g * d + p * W);
        }
        for (int g = 0; g < G; g++) {
            float s = total<W>(sum[g]) * scale;
            score[g * seen + j] = s;
            top[g] = s > top[g] ? s : top[g];
        }
    }
    float share[G];
    for (int g = 0; g < G; g++) {
        float sum = 0.0f, peak = top[g], *row = score + g * seen;
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < seen; j++) {
            row[j] = exponential(row[j] - peak);
            sum += row[j];
        }
        share[g] = 1.0f / sum;
    }
    for (int p = 0; p < parts; p++) {
        f sum[G];
        for (int g = 0; g < G; g++) sum[g] = f{};
        const T *value = v + (int64_t)first * d + p * W;
        for (int j = 0; j < seen; j++, value += d) {
            f part = load<W>(value);
            for (int g = 0; g < G; g++) sum[g] += part * score[g * seen + j];
        }
        for (int g = 0; g < G; g++)
            for (int i = 0; i < W; i++) put(out + g * d + p * W + i, sum[g][i] * share[g]);
    }
}

template <class T, int W>
void attend_group(const float *q, const T *k, const T *v, int first, int last, int d, int group, float scale,
                  float *score, T *out) {
    int done = 0;
    for (; group - done >= 4; done += 4)
        attend_heads<T, W, 4>(q + done * d, k, v, first, last, d, scale, score, out + done * d);
    if (group - done == 3) attend_heads<T, W, 3>(q + done * d, k, v, first, last, d, scale, score, out + done * d);
    if (group - done == 2) attend_heads<T, W, 2>(q + done * d, k, v, first, last, d, scale, score, out + done * d);
    if (group - done == 1) attend_heads<T, W, 1>(q + done * d, k, v, first, last, d, scale, score, out + done * d);
}

template <class T>
void attend(const T *qkv, T *out, T *keys, T *values, const int64_t *column, const float *cos, const float *sin,
            const float *q_norm, const float *k_norm, int rows, int heads, int kv_heads, int d, int64_t width, int window,
            float eps, float scale) {
    int group = heads / kv_heads;
#pragma omp parallel for schedule(static)
    for (int n = 0; n < rows; n++) {
        static thread_local std::vector<float> q, score;
        int last = (int)column[n], first = window > 0 && last >= window ? last - window + 1 : 0;
        q.resize((size_t)(group + 1) * d);
        score.resize((size_t)4 * (last + 1));
        const T *row = qkv + (int64_t)n * (heads + 2 * kv_heads) * d;
        const float *c = cos + (int64_t)last * d, *s = sin + (int64_t)last * d;
        for (int h = 0; h < kv_heads; h++) {
            T *k = keys + ((int64_t)n * kv_heads + h) * width * d, *v = values + ((int64_t)n * kv_heads + h) * width * d;
            float *key = q.data() + group * d;
            placed(row + (heads + h) * d, key, d, c, s, k_norm, eps);
            for (int i = 0; i < d; i++) put(k + last * d + i, key[i]);
            memcpy(v + last * d, row + (heads + kv_heads + h) * d, sizeof(T) * d);
            for (int g = 0; g < group; g++) placed(row + (h * group + g) * d, q.data() + g * d, d, c, s, q_norm, eps);
            T *to = out + ((int64_t)n * heads + h * group) * d;
            if (d % 16 == 0)
                attend_group<T, 16>(q.data(), k, v, first, last, d, group, scale, score.data(), to);
            else
                attend_group<T, 8>(q.data(), k, v, first, last, d, group, scale, score.data(), to);
        }
    }
}

// x += norm(y) * post (post null: x += y; y null: x as it is), then out = norm(x) * weight in the type of out.
template <class Y, class T>
void add_norm(float *x, const Y *y, const float *post, const float *weight, T *out, int rows, int width, float eps) {
#pragma omp parallel for schedule(static)
    for (int n = 0; n < rows; n++) {
        float *at = x + (int64_t)n * width;
        const Y *by = y ? y + (int64_t)n * width : nullptr;
        float sum = 0.0f, factor = 1.0f;
        if (by && post) {
#pragma omp simd reduction(+ : sum)
            for (int i = 0; i < width; i++) sum += up(by[i]) * up(by[i]);
            factor = 1.0f / std::sqrt(sum / width + eps);
            for (int i = 0; i < width; i++) at[i] += up(by[i]) * factor * post[i];
        } else if (by) {
            for (int i = 0; i < width; i++) at[i] += up(by[i]);
        }
        sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < width; i++) sum += at[i] * at[i];
        factor = 1.0f / std::sqrt(sum / width + eps);
        T *to = out + (int64_t)n * width;
        for (int i = 0; i < width; i++) put(to + i, at[i] * factor * weight[i]);
    }
}

// out = act(gate) * up for rows [gate | up]; act is silu (0) or the tanh approximation of gelu (1).
template <class T> void gated(const T *both, T *out, int rows, int width, int kind) {
#pragma omp parallel for schedule(static)
    for (int n = 0; n < rows; n++) {
        const T *gate = both + (int64_t)n * 2 * width, *by = gate + width;
        T *to = out + (int64_t)n * width;
        if (kind == 0) {
#pragma omp simd
            for (int i = 0; i < width; i++) {
                float g = up(gate[i]);
                put(to + i, g / (1.0f + exponential(-g)) * up(by[i]));
            }
        } else {
#pragma omp simd
            for (int i = 0; i < width; i++) {
                float g = up(gate[i]), z = 0.7978845608f * (g + 0.044715f * g * g * g);
                put(to + i, g * (1.0f - 1.0f / (1.0f + exponential(2.0f * z))) * up(by[i]));
            }
        }
    }
}

const int BLOCK = 256;

// The token at which the distribution function of softmax(inverse * logits) passes u (no uniforms: the likeliest token,
// the first of equals), and its log-prob.
void pick(const float *logits, const double *uniform, int64_t *ids, float *logp, int rows, int vocabulary, float inverse) {
#pragma omp parallel for schedule(static)
    for (int n = 0; n < rows; n++) {
        static thread_local std::vector<double> passed;
        const float *z = logits + (int64_t)n * vocabulary;
        int blocks = (vocabulary + BLOCK - 1) / BLOCK;
        passed.resize(blocks);
        float top = -INFINITY, odd = 0.0f;
#pragma omp simd reduction(max : top) reduction(+ : odd)
        for (int i = 0; i < vocabulary; i++) {
            top = z[i] > top ? z[i] : top;
            odd += z[i] == z[i] ? 0.0f : 1.0f;
        }
        double sum = 0.0;
        for (int b = 0; b < blocks; b++) {
            int end = (b + 1) * BLOCK < vocabulary ? (b + 1) * BLOCK : vocabulary;
            float part = 0.0f;
#pragma omp simd reduction(+ : part)
            for (int i = b * BLOCK; i < end; i++) part += exponential((z[i] - top) * inverse);
            passed[b] = sum += part;
        }
        if (odd > 0.0f || !std::isfinite(top) || !std::isfinite(sum)) {
            ids[n] = -1;
            logp[n] = NAN;
            continue;
        }
        if (!uniform) {
            int first = 0;
            while (z[first] != top) first++;
            ids[n] = first;
            logp[n] = (float)-std::log(sum);
            continue;
        }
        // The target stays below the sum, so a token of zero weight is never taken, whatever the rounding.
        double target = uniform[n] * sum, below = std::nextafter(sum, 0.0);
        target = target < below ? target : below;
        int low = 0, high = blocks - 1;
        while (low < high) {
            int middle = (low + high) / 2;
            if (passed[middle] > target) high = middle;
            else low = middle + 1;
        }
        double rest = target - (low ? passed[low - 1] : 0.0), run = 0.0;
        int end = (low + 1) * BLOCK < vocabulary ? (low + 1) * BLOCK : vocabulary, taken = -1;
        for (int i = low * BLOCK; i < end; i++) {
            float weight = exponential((z[i] - top) * inverse);
            if (weight > 0.0f) taken = i;  // the last possible one, where the block's float32 sum was rounded up
            if ((run += weight) > rest) break;
        }
        ids[n] = taken;
        logp[n] = (float)((double)((z[taken] - top) * inverse) - std::log(sum));
    }
}

}  // namespace

extern "C" {
void attend_f(const float *a, float *b, float *c, float *d, const int64_t *e, const float *f, const float *g, const float *h,
              const float *i, int j, int k, int l, int m, int64_t n, int o, float p, float q) {
    attend(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q);
}
void attend_h(const bf16 *a, bf16 *b, bf16 *c, bf16 *d, const int64_t *e, const float *f, const float *g, const float *h,
              const float *i, int j, int k, int l, int m, int64_t n, int o, float p, float q) {
    attend(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q);
}
void add_norm_ff(float *x, const float *y, const float *p, const float *w, float *out, int rows, int width, float eps) {
    add_norm(x, y, p, w, out, rows, width, eps);
}
void add_norm_hh(float *x, const bf16 *y, const float *p, const float *w, bf16 *out, int rows, int width, float eps) {
    add_norm(x, y, p, w, out, rows, width, eps);
}
void add_norm_hf(float *x, const bf16 *y, const float *p, const float *w, float *out, int rows, int width, float eps) {
    add_norm(x, y, p, w, out, rows, width, eps);
}
void gated_f(const float *both, float *out, int rows, int width, int kind) { gated(both, out, rows, width, kind); }
void gated_h(const bf16 *both, bf16 *out, int rows, int width, int kind) { gated(both, out, rows, width, kind); }
void pick_f(const float *z, const double *u, int64_t *ids, float *logp, int rows, int vocabulary, float inverse) {
    pick(z, u, ids, logp, rows, vocabulary, inverse);
}
}
