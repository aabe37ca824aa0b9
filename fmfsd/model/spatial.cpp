// Spatial enhancement of whole maps in one pass over memory, forward and backward by its closed form; see enhance.py.
//
// A map has C channels at P positions, in G groups of N = C / G consecutive channels. Images are independent, and each is
// done by one thread, so that its result depends neither on the batch nor on the number of threads. T is what maps are
// stored as, A what is computed in; compile with -DT=Half|float|double -DA=float|double.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

struct Half { uint16_t bits; };  // bfloat16

static inline float load(float value) { return value; }
static inline double load(double value) { return value; }
static inline float load(Half value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

static inline void store(float value, float& place) { place = value; }
static inline void store(double value, double& place) { place = value; }
static inline void store(float value, Half& place) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    place.bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

static inline float exponential(float value) { return expf(value); }
static inline double exponential(double value) { return exp(value); }

// Maps of which each channel is contiguous: element (c, p) is at c * P + p, a group's value (g, p) at g * P + p.
struct Planes {
    const long C, G, P, N = C / G;

    void channel_sums(const A* x, A* sums) const {
        for (long c = 0; c < C; c++) {
            A sum = 0;
            #pragma omp simd reduction(+ : sum)
            for (long p = 0; p < P; p++) sum += x[c * P + p];
            sums[c] = sum;
        }
    }
    void group_sums(const A* x, A* sums) const {
        for (long g = 0; g < G; g++) {
            A sum = 0;
            #pragma omp simd reduction(+ : sum)
            for (long p = 0; p < P; p++) sum += x[g * P + p];
            sums[g] = sum;
        }
    }
    // sums(g, p) of value(c, p, element) over the group's channels
    template <typename F> void over_channels(F value, A* sums) const {
        for (long g = 0; g < G; g++) {
            A* row = sums + g * P;
            #pragma omp simd
            for (long p = 0; p < P; p++) row[p] = 0;
            for (long c = g * N; c < (g + 1) * N; c++) {
                #pragma omp simd
                for (long p = 0; p < P; p++) row[p] += value(c, c * P + p);
            }
        }
    }
    template <typename F> void each_of_group(F act) const {
        for (long g = 0; g < G; g++) {
            #pragma omp simd
            for (long p = 0; p < P; p++) act(g, g * P + p);
        }
    }
    template <typename F> void each(F act) const {
        for (long g = 0; g < G; g++)
            for (long c = g * N; c < (g + 1) * N; c++) {
                #pragma omp simd
                for (long p = 0; p < P; p++) act(c, c * P + p, g * P + p);
            }
    }
};

// Maps whose channels are contiguous at each position: element (c, p) is at p * C + c, a group's value at p * G + g.
template <long FIXED> struct Pixels {
    const long C, G, P;

    void channel_sums(const A* x, A* sums) const { row_sums(x, sums, C); }
    void group_sums(const A* x, A* sums) const { row_sums(x, sums, G); }
    void row_sums(const A* x, A* sums, long length) const {
        const long BLOCK = 32;  // sums of sums lose fewer digits
        for (long i = 0; i < length; i++) sums[i] = 0;
        for (long begin = 0; begin < P; begin += BLOCK) {
            const long end = begin + BLOCK < P ? begin + BLOCK : P;
            #pragma omp simd
            for (long i = 0; i < length; i++) {
                A sum = 0;
                for (long p = begin; p < end; p++) sum += x[p * length + i];
                sums[i] += sum;
            }
        }
    }
    template <typename F> void over_channels(F value, A* sums) const {
        const long N = FIXED ? FIXED : C / G;
        for (long p = 0; p < P; p++) {
            #pragma omp simd
            for (long g = 0; g < G; g++) {
                A sum = 0;
                for (long j = 0; j < N; j++) sum += value(g * N + j, p * C + g * N + j);
                sums[p * G + g] = sum;
            }
        }
    }
    template <typename F> void each_of_group(F act) const {
        for (long p = 0; p < P; p++) {
            #pragma omp simd
            for (long g = 0; g < G; g++) act(g, p * G + g);
        }
    }
    template <typename F> void each(F act) const {
        const long N = FIXED ? FIXED : C / G;
        for (long p = 0; p < P; p++) {
            #pragma omp simd
            for (long g = 0; g < G; g++)
                for (long j = 0; j < N; j++) act(g * N + j, p * C + g * N + j, p * G + g);
        }
    }
};

// What is computed of one image, and kept until the next.
struct Scratch {
    std::vector<A> x, y, through_mean, mean, sums, agreement, mask, slope, product, deviation, scale, offset, share;
    Scratch(long C, long G, long P)
        : x(C * P), y(C * P), through_mean(C * P), mean(C), sums(C), agreement(G * P), mask(G * P), slope(G * P),
          product(G * P), deviation(G), scale(G), offset(G), share(G) {}
};

// Fills in x, mean, agreement (standardised), deviation, scale (1 / (deviation + eps)) and mask.
template <typename Layout>
static void enhance(const Layout& layout, const T* image, const A* gamma, const A* beta, Scratch& s) {
    const long C = layout.C, G = layout.G, P = layout.P;
    A *x = s.x.data(), *mean = s.mean.data(), *agreement = s.agreement.data(), *mask = s.mask.data();
    A *scale = s.scale.data(), *offset = s.offset.data();
    #pragma omp simd
    for (long i = 0; i < C * P; i++) x[i] = load(image[i]);
    layout.channel_sums(x, mean);
    for (long c = 0; c < C; c++) mean[c] /= P;
    layout.over_channels([=](long c, long i) { return mean[c] * x[i]; }, agreement);
    layout.group_sums(agreement, offset);
    for (long g = 0; g < G; g++) offset[g] /= P;
    layout.each_of_group([=](long g, long i) { agreement[i] -= offset[g]; mask[i] = agreement[i] * agreement[i]; });
    layout.group_sums(mask, scale);
    for (long g = 0; g < G; g++) {
        s.deviation[g] = std::sqrt(scale[g] / (P > 1 ? P - 1 : 1));
        scale[g] = 1 / (s.deviation[g] + A(1e-5));
    }
    layout.each_of_group([=](long g, long i) {
        agreement[i] *= scale[g];
        mask[i] = 1 / (1 + exponential(-(gamma[g] * agreement[i] + beta[g])));
    });
}

// The gradient of one image into s.y, of gamma and beta into theirs. s.slope has that of the mask; if `gated`, s.y has
// that of the map times its mask.
template <typename Layout>
static void differentiate(
    const Layout& layout, const A* gamma, A* gamma_gradient, A* beta_gradient, bool gated, Scratch& s
) {
    const long C = layout.C, G = layout.G, P = layout.P;
    A *x = s.x.data(), *mean = s.mean.data(), *agreement = s.agreement.data(), *mask = s.mask.data();
    A *scale = s.scale.data(), *offset = s.offset.data(), *share = s.share.data();
    A *y = s.y.data(), *slope = s.slope.data(), *product = s.product.data();
    A *through_mean = s.through_mean.data(), *sums = s.sums.data();
    if (gated) layout.over_channels([=](long, long i) { return y[i] * x[i]; }, slope);
    layout.each_of_group([=](long, long i) { slope[i] *= mask[i] * (1 - mask[i]); });
    layout.group_sums(slope, beta_gradient);
    layout.each_of_group([=](long, long i) { product[i] = slope[i] * agreement[i]; });
    layout.group_sums(product, gamma_gradient);
    for (long g = 0; g < G; g++) {
        offset[g] = gamma[g] * beta_gradient[g] / P;
        share[g] = s.deviation[g] > 0 ? gamma[g] * gamma_gradient[g] / ((P > 1 ? P - 1 : 1) * s.deviation[g]) : A(0);
    }
    layout.each_of_group([=](long g, long i) {
        slope[i] = scale[g] * (gamma[g] * slope[i] - offset[g]) - share[g] * agreement[i];
    });
    layout.each([=](long, long i, long j) { through_mean[i] = slope[j] * x[i]; });
    layout.channel_sums(through_mean, sums);
    for (long c = 0; c < C; c++) sums[c] /= P;
    if (gated) layout.each([=](long c, long i, long j) { y[i] = y[i] * mask[j] + slope[j] * mean[c] + sums[c]; });
    else layout.each([=](long c, long i, long j) { y[i] = slope[j] * mean[c] + sums[c]; });
}

template <typename Layout>
static void forward_all(
    const Layout& layout, const T* maps, const A* gamma, const A* beta, T* gated, A* masks, long images, int threads
) {
    const long size = layout.C * layout.P, positions = layout.G * layout.P;
    #pragma omp parallel num_threads(threads)
    {
        Scratch s(layout.C, layout.G, layout.P);
        #pragma omp for
        for (long b = 0; b < images; b++) {
            enhance(layout, maps + b * size, gamma, beta, s);
            if (masks) std::memcpy(masks + b * positions, s.mask.data(), positions * sizeof(A));
            const A *x = s.x.data(), *mask = s.mask.data();
            T* out = gated + b * size;
            if (gated) layout.each([=](long, long i, long j) { store(x[i] * mask[j], out[i]); });
        }
    }
}

template <typename Layout>
static void backward_all(
    const Layout& layout, const T* maps, const A* gamma, const A* beta, const T* gated, const A* masks, T* gradient,
    A* gamma_gradient, A* beta_gradient, long images, int threads
) {
    const long size = layout.C * layout.P, positions = layout.G * layout.P;
    #pragma omp parallel num_threads(threads)
    {
        Scratch s(layout.C, layout.G, layout.P);
        #pragma omp for
        for (long b = 0; b < images; b++) {
            enhance(layout, maps + b * size, gamma, beta, s);
            A* y = s.y.data();
            #pragma omp simd
            for (long i = 0; i < (gated ? size : 0); i++) y[i] = load(gated[b * size + i]);
            if (masks) std::memcpy(s.slope.data(), masks + b * positions, positions * sizeof(A));
            differentiate(layout, gamma, gamma_gradient + b * layout.G, beta_gradient + b * layout.G, gated != nullptr, s);
            T* out = gradient + b * size;
            #pragma omp simd
            for (long i = 0; i < size; i++) store(y[i], out[i]);
        }
    }
}

// Calls `act` with the layout; loops over a group's channels are unrolled where their number is a usual one.
template <typename F> static void in_layout(long C, long G, long P, bool channels_last, F act) {
    if (!channels_last) return act(Planes{C, G, P});
    switch (C / G) {
        case 2: return act(Pixels<2>{C, G, P});
        case 4: return act(Pixels<4>{C, G, P});
        case 8: return act(Pixels<8>{C, G, P});
        case 16: return act(Pixels<16>{C, G, P});
        default: return act(Pixels<0>{C, G, P});
    }
}

// (B, C, P) maps to maps times their masks, or to the masks (B, G, P): the other is null.
extern "C" void forward(
    const T* maps, const A* gamma, const A* beta, T* gated, A* masks, long B, long C, long G, long P, int channels_last,
    int threads
) {
    in_layout(C, G, P, channels_last, [=](const auto& layout) {
        forward_all(layout, maps, gamma, beta, gated, masks, B, threads);
    });
}

// From the gradient of one of these to that of the maps, and those of gamma and beta by each image, (B, G).
extern "C" void backward(
    const T* maps, const A* gamma, const A* beta, const T* gated, const A* masks, T* gradient, A* gamma_gradient,
    A* beta_gradient, long B, long C, long G, long P, int channels_last, int threads
) {
    in_layout(C, G, P, channels_last, [=](const auto& layout) {
        backward_all(layout, maps, gamma, beta, gated, masks, gradient, gamma_gradient, beta_gradient, B, threads);
    });
}
