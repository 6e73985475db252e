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

#ifdef __AVX512BW__
#include <immintrin.h>
#endif

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
#ifdef __AVX512BW__  // GCC makes halves of it
    if (W == 16) {
        __m512 wide = _mm512_castsi512_ps(
            _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
        typename Vector<W>::f value;
        memcpy(&value, &wide, sizeof value);
        return value;
    }
#endif
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

typedef float four __attribute__((vector_size(16), aligned(4)));

inline four folded(Vector<8>::f v) {
    return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
}
inline four folded(Vector<16>::f v) {
    return folded((Vector<8>::f)(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                                 __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)));
}
// The sums of four vectors' elements.
inline four totals(four a, four b, four c, four d) {
    four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    four cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

// Keys and values of one head over some columns, [columns, d] each.
template <class T> struct Span {
    const T *keys, *values;
    int columns;
};

// The scores of C keys for G query heads, to score[g * stride + c].
template <class T, int W, int P, int G, int C>
inline void scores(const float *q, const T *key, int d, float scale, float *score, int stride) {
    typedef typename Vector<W>::f f;
    const int parts = P ? P : d / W;
    f sum[G][C];
    for (int g = 0; g < G; g++)
        for (int c = 0; c < C; c++) sum[g][c] = f{};
#pragma GCC unroll 8
    for (int p = 0; p < parts; p++) {
        f part[C];
        for (int c = 0; c < C; c++) part[c] = load<W>(key + c * d + p * W);
        for (int g = 0; g < G; g++) {
            f query = load<W>(q + g * d + p * W);
            for (int c = 0; c < C; c++) sum[g][c] += part[c] * query;
        }
    }
    for (int g = 0; g < G; g++)
        if (C == 4)
            *(four *)(score + g * stride) = totals(folded(sum[g][0]), folded(sum[g][1 % C]), folded(sum[g][2 % C]),
                                                   folded(sum[g][3 % C])) * scale;
        else {
            four one = folded(sum[g][0]);
            score[g * stride] = totals(one, one, one, one)[0] * scale;
        }
}

// One row and one key head: scores of G query heads over both spans (the prompt's and the row's own), softmax, mean of
// the values. P is d / W, or 0 where d is not known to the compiler.
template <class T, int W, int P, int G>
void attend_heads(const float *q, Span<T> prompt, Span<T> own, int d, float scale, float *score, T *out) {
    typedef typename Vector<W>::f f;
    const int parts = P ? P : d / W, seen = prompt.columns + own.columns;
    const Span<T> spans[2] = {prompt, own};
    float *at = score;
    for (const Span<T> &span : spans) {
        int j = 0;
        for (; j + 4 <= span.columns; j += 4) scores<T, W, P, G, 4>(q, span.keys + (int64_t)j * d, d, scale, at + j, seen);
        for (; j < span.columns; j++) scores<T, W, P, G, 1>(q, span.keys + (int64_t)j * d, d, scale, at + j, seen);
        at += span.columns;
    }
    float share[G];
    for (int g = 0; g < G; g++) {
        float *row = score + g * seen, top = row[0], sum = 0.0f;
#pragma omp simd reduction(max : top)
        for (int j = 0; j < seen; j++) top = row[j] > top ? row[j] : top;
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < seen; j++) sum += row[j] = exponential(row[j] - top);
        share[g] = 1.0f / sum;
    }
    const int B = P ? P : 1;  // parts whose sums are held in registers together
    for (int p = 0; p < parts; p += B) {
        f sum[B][G];
        for (int b = 0; b < B; b++)
            for (int g = 0; g < G; g++) sum[b][g] = f{};
        at = score;
        for (const Span<T> &span : spans) {
            const T *value = span.values + p * W;
            for (int j = 0; j < span.columns; j++, value += d, at++)
                for (int b = 0; b < B; b++) {
                    f part = load<W>(value + b * W);
                    for (int g = 0; g < G; g++) sum[b][g] += part * at[g * seen];
                }
        }
        for (int b = 0; b < B; b++)
            for (int g = 0; g < G; g++) {
                f mean = sum[b][g] * share[g];
                for (int i = 0; i < W; i++) put(out + g * d + (p + b) * W + i, mean[i]);
            }
    }
}

template <class T, int W, int P>
void attend_group(const float *q, Span<T> prompt, Span<T> own, int d, int group, float scale, float *score, T *out) {
    int done = 0;
    for (; group - done >= 4; done += 4)
        attend_heads<T, W, P, 4>(q + done * d, prompt, own, d, scale, score, out + done * d);
    if (group - done == 3) attend_heads<T, W, P, 3>(q + done * d, prompt, own, d, scale, score, out + done * d);
    if (group - done == 2) attend_heads<T, W, P, 2>(q + done * d, prompt, own, d, scale, score, out + done * d);
    if (group - done == 1) attend_heads<T, W, P, 1>(q + done * d, prompt, own, d, scale, score, out + done * d);
}

// What a step's rows have of the cache: row n's prompt has keys and values at prompts[2n] and prompts[2n + 1] of lengths[n]
// columns, its heads `strides[n]` values apart; its own columns follow in slot n of keys and values.
template <class T> struct Slots {
    T *keys, *values;
    int64_t width;
    const int64_t *prompts, *lengths, *strides, *columns;
};

template <class T> inline void fetch(const T *keys, const T *values, int64_t count) {
    const int64_t line = 64 / sizeof(T), most = count < 64 * line ? count : 64 * line;
    for (int64_t i = 0; i < most; i += line) {
        __builtin_prefetch(keys + i);
        __builtin_prefetch(values + i);
    }
}

inline std::vector<float> &scratch() {
    static thread_local std::vector<float> kept;
    return kept;
}

// How the heads of a layer are placed and weighed.
struct Heads {
    const float *cos, *sin, *q_norm, *k_norm;
    int heads, kv_heads, d, window;
    float eps, scale;
    int group() const { return heads / kv_heads; }
    int64_t width() const { return (int64_t)(heads + 2 * kv_heads) * d; }
    int first(int column) const { return window > 0 && column >= window ? column - window + 1 : 0; }
};

// Write key and value of head h of one token's fused product to their places.
template <class T> inline void keep(const T *row, T *key, T *value, int column, int h, const Heads &of) {
    std::vector<float> &y = scratch();
    y.resize(of.d);
    const int64_t at = (int64_t)column * of.d;
    placed(row + (of.heads + h) * of.d, y.data(), of.d, of.cos + at, of.sin + at, of.k_norm, of.eps);
    for (int i = 0; i < of.d; i++) put(key + i, y[i]);
    memcpy(value, row + (of.heads + of.kv_heads + h) * of.d, sizeof(T) * of.d);
}

// Attention of one token's query heads that share key head h.
template <class T>
inline void look(const T *row, T *out, Span<T> prompt, Span<T> own, int column, int h, const Heads &of) {
    static thread_local std::vector<float> q, score;
    const int group = of.group(), d = of.d;
    const int64_t at = (int64_t)column * d;
    q.resize((size_t)group * d);
    score.resize((size_t)4 * (column + 1));
    for (int g = 0; g < group; g++)
        placed(row + (h * group + g) * d, q.data() + g * d, d, of.cos + at, of.sin + at, of.q_norm, of.eps);
    T *to = out + (int64_t)h * group * d;
    if (d == 64)
        attend_group<T, 16, 4>(q.data(), prompt, own, d, group, of.scale, score.data(), to);
    else if (d % 16 == 0)
        attend_group<T, 16, 0>(q.data(), prompt, own, d, group, of.scale, score.data(), to);
    else
        attend_group<T, 8, 0>(q.data(), prompt, own, d, group, of.scale, score.data(), to);
}

// One new token a row.
template <class T> void attend(const T *qkv, T *out, Slots<T> slots, int rows, const Heads &of) {
    const int64_t d = of.d;
    // Rows of a group stand together, so that their prompt's head stays in the cache near the core.
#pragma omp parallel for collapse(2) schedule(static)
    for (int h = 0; h < of.kv_heads; h++)
        for (int n = 0; n < rows; n++) {
            const int column = (int)slots.columns[n], before = (int)slots.lengths[n], at = column - before;
            const int first = of.first(column);
            T *keys = slots.keys + ((int64_t)n * of.kv_heads + h) * slots.width * d;
            T *values = slots.values + ((int64_t)n * of.kv_heads + h) * slots.width * d;
            // The next row's own columns, which nothing has touched since the last step, start to come meanwhile.
            if (n + 1 < rows)
                fetch(keys + of.kv_heads * slots.width * d, values + of.kv_heads * slots.width * d,
                      (slots.columns[n + 1] - slots.lengths[n + 1]) * d);
            keep(qkv + n * of.width(), keys + at * d, values + at * d, column, h, of);
            const int64_t skipped = first < before ? first : before, cut = first - skipped;
            Span<T> prompt = {(const T *)slots.prompts[2 * n] + h * slots.strides[n] + skipped * d,
                              (const T *)slots.prompts[2 * n + 1] + h * slots.strides[n] + skipped * d,
                              before - (int)skipped};
            Span<T> own = {keys + cut * d, values + cut * d, at + 1 - (int)cut};
            look(qkv + n * of.width(), out + (int64_t)n * of.heads * d, prompt, own, column, h, of);
        }
}

// Prompts of `length` tokens each: keys and values [prompts, kv_heads, length, d] are written, each token sees those up to it.
template <class T>
void read(const T *qkv, T *out, T *keys, T *values, int prompts, int length, const Heads &of) {
    const int64_t d = of.d;
#pragma omp parallel for collapse(2) schedule(static)
    for (int p = 0; p < prompts; p++)
        for (int h = 0; h < of.kv_heads; h++) {
            T *k = keys + ((int64_t)p * of.kv_heads + h) * length * d, *v = values + ((int64_t)p * of.kv_heads + h) * length * d;
            const T *rows = qkv + (int64_t)p * length * of.width();
            for (int t = 0; t < length; t++) keep(rows + t * of.width(), k + t * d, v + t * d, t, h, of);
            for (int t = 0; t < length; t++) {
                const int first = of.first(t);
                Span<T> own = {k + first * d, v + first * d, t + 1 - first};
                look(rows + t * of.width(), out + ((int64_t)p * length + t) * of.heads * d, Span<T>{nullptr, nullptr, 0}, own, t, h, of);
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

// Logits from bfloat16 states [rows, 2 * pairs] and an output layer in bfloat16, with float32 sums that are kept: oneDNN, as
// torch calls it, rounds its results to the type of its inputs. The weights come as [vocabulary / 32, pairs, 32, 2].
#ifdef __AVX512BF16__
template <int R>
inline void head_tile(const bf16 *x, const bf16 *w, float *out, int pairs, int64_t vocabulary, int columns) {
    __m512 sum[R][2];
    for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int k = 0; k < pairs; k++) {
        __m512bh one = (__m512bh)_mm512_loadu_si512(w + k * 64), two = (__m512bh)_mm512_loadu_si512(w + k * 64 + 32);
        for (int r = 0; r < R; r++) {
            int32_t both;
            memcpy(&both, x + ((int64_t)r * pairs + k) * 2, 4);
            __m512bh state = (__m512bh)_mm512_set1_epi32(both);
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], one, state);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], two, state);
        }
    }
    __mmask16 low = columns >= 16 ? 0xffff : (1 << columns) - 1;
    __mmask16 high = columns >= 32 ? 0xffff : (columns > 16 ? (1 << (columns - 16)) - 1 : 0);
    for (int r = 0; r < R; r++) {
        _mm512_mask_storeu_ps(out + r * vocabulary, low, sum[r][0]);
        if (high) _mm512_mask_storeu_ps(out + r * vocabulary + 16, high, sum[r][1]);
    }
}

void head(const bf16 *x, const bf16 *w, float *out, int rows, int pairs, int vocabulary) {
    const int blocks = (vocabulary + 31) / 32;
#pragma omp parallel for schedule(static)
    for (int b = 0; b < blocks; b++) {
        const bf16 *block = w + (int64_t)b * pairs * 64;
        const int columns = vocabulary - b * 32 < 32 ? vocabulary - b * 32 : 32;
        for (int n = 0; n < rows;) {
            const bf16 *states = x + (int64_t)n * pairs * 2;
            float *to = out + (int64_t)n * vocabulary + b * 32;
            const int left = rows - n;
            if (left >= 8) head_tile<8>(states, block, to, pairs, vocabulary, columns), n += 8;
            else if (left >= 4) head_tile<4>(states, block, to, pairs, vocabulary, columns), n += 4;
            else head_tile<1>(states, block, to, pairs, vocabulary, columns), n += 1;
        }
    }
}
#endif

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
#define HEADS()                                                                                                    \
    const float *cos, const float *sin, const float *q_norm, const float *k_norm, int rows, int heads, int kv_heads, int d, \
        int64_t width, int window, float eps, float scale
#define ATTEND(NAME, T)                                                                                              \
    void NAME(const T *qkv, T *out, T *keys, T *values, const int64_t *prompts, const int64_t *rows_of, HEADS()) {     \
        Slots<T> slots = {keys, values, width, prompts, rows_of, rows_of + rows, rows_of + 2 * rows};                   \
        attend(qkv, out, slots, rows, Heads{cos, sin, q_norm, k_norm, heads, kv_heads, d, window, eps, scale});         \
    }
#define READ(NAME, T)                                                                                                \
    void NAME(const T *qkv, T *out, T *keys, T *values, HEADS()) {                                                     \
        read(qkv, out, keys, values, rows, (int)width, Heads{cos, sin, q_norm, k_norm, heads, kv_heads, d, window, eps, scale}); \
    }
ATTEND(attend_f, float)
ATTEND(attend_h, bf16)
READ(read_f, float)
READ(read_h, bf16)
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
int has_head() {
#ifdef __AVX512BF16__
    return 1;
#else
    return 0;
#endif
}
void head_h(const bf16 *x, const bf16 *w, float *out, int rows, int pairs, int vocabulary) {
#ifdef __AVX512BF16__
    head(x, w, out, rows, pairs, vocabulary);
#endif
}
void pick_f(const float *z, const double *u, int64_t *ids, float *logp, int rows, int vocabulary, float inverse) {
    pick(z, u, ids, logp, rows, vocabulary, inverse);
}
}
