// Spatial enhancement of whole maps, forward and backward in closed form; see fmfsd/model/spatial_enhancement.py.
//
// A map has C channels at P positions, in G groups of N = C / G consecutive channels. Images are independent, and each is
// processed by one thread: its result depends neither on the batch nor on the number of threads, and it stays in that
// core's cache. T is the storage type of maps, A the type of the arithmetic; compile with -DT=Half|float|double
// -DA=float|double.
//
// Throughout, i indexes the map, c is its channel, and j indexes the (group, position) array at the same position.

#include <cmath>
#include <vector>

#include "element_types.h"

static inline double exponential(double value) { return std::exp(value); }
static inline float exponential(float value) {  // accurate to 1e-7 and vectorised, as std::exp is only with -ffast-math
    const float ROUNDING = 12582912.0f;         // 1.5 * 2^23: floats of this size have no fraction
    float bounded = value < -87.0f ? -87.0f : value > 88.0f ? 88.0f : value;
    float powers = (bounded * 1.44269504f + ROUNDING) - ROUNDING;  // of two
    float rest = (bounded - powers * 0.693359375f) + powers * 2.12194440e-4f;
    float series = 1.0f / 5040;
    for (float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) series = series * rest + factor;
    int32_t exponent = (int32_t(powers) + 127) << 23;
    float scale;
    std::memcpy(&scale, &exponent, sizeof scale);
    return series * scale;
}

// Contiguous maps: the positions of a channel are contiguous.
struct Planes {
    const long C, G, P, N = C / G;

    // Calls act(c, i, j) for each element.
    template <typename F> void each(F act) const {
        for (long c = 0; c < C; c++) {
            #pragma omp simd
            for (long p = 0; p < P; p++) act(c, c * P + p, c / N * P + p);
        }
    }
    // Calls act(g, j) for each position of each group.
    template <typename F> void each_of_group(F act) const {
        for (long g = 0; g < G; g++) {
            #pragma omp simd
            for (long p = 0; p < P; p++) act(g, g * P + p);
        }
    }
    // sums[c] = sum of value(i, j) over positions
    template <typename F> void channel_sums(F value, A* sums) const {
        for (long c = 0; c < C; c++) sums[c] = sum(c * P, c / N * P, value);
    }
    // sums[g] = sum of value(j) over positions
    template <typename F> void group_sums(F value, A* sums) const {
        for (long g = 0; g < G; g++) sums[g] = sum(0, g * P, [=](long, long j) { return value(j); });
    }
    template <typename F> A sum(long i, long j, F value) const {
        A total = 0;
        #pragma omp simd reduction(+ : total)
        for (long p = 0; p < P; p++) total += value(i + p, j + p);
        return total;
    }
    // sums[j] = sum of value(c, i) over the group's channels
    template <typename F> void over_channels(F value, A* sums) const {
        each_of_group([=](long, long j) { sums[j] = 0; });
        each([=](long c, long i, long j) { sums[j] += value(c, i); });
    }
};

// Channels-last maps: the channels of a position are contiguous. FIXED is N if known at compile time, which unrolls
// loops, else 0.
template <long FIXED> struct Pixels {
    const long C, G, P;
    static constexpr long BLOCK = 32;  // positions that are summed separately: sums of partial sums are more precise

    template <typename F> void each(F act) const {
        const long N = FIXED ? FIXED : C / G;
        for (long p = 0; p < P; p++) {
            #pragma omp simd
            for (long g = 0; g < G; g++)
                for (long n = 0; n < N; n++) act(g * N + n, p * C + g * N + n, p * G + g);
        }
    }
    template <typename F> void each_of_group(F act) const {
        for (long p = 0; p < P; p++) {
            #pragma omp simd
            for (long g = 0; g < G; g++) act(g, p * G + g);
        }
    }
    template <typename F> void channel_sums(F value, A* sums) const {
        const long N = FIXED ? FIXED : C / G;
        in_blocks(C, sums, [=](long p, A* partial) {
            #pragma omp simd
            for (long g = 0; g < G; g++)
                for (long n = 0; n < N; n++) partial[g * N + n] += value(p * C + g * N + n, p * G + g);
        });
    }
    template <typename F> void group_sums(F value, A* sums) const {
        in_blocks(G, sums, [=](long p, A* partial) {
            #pragma omp simd
            for (long g = 0; g < G; g++) partial[g] += value(p * G + g);
        });
    }
    template <typename F> void in_blocks(long length, A* sums, F add) const {
        std::vector<A> partial(length);
        for (long i = 0; i < length; i++) sums[i] = 0;
        for (long begin = 0; begin < P; begin += BLOCK) {
            for (long i = 0; i < length; i++) partial[i] = 0;
            for (long p = begin; p < P && p < begin + BLOCK; p++) add(p, partial.data());
            for (long i = 0; i < length; i++) sums[i] += partial[i];
        }
    }
    template <typename F> void over_channels(F value, A* sums) const {
        const long N = FIXED ? FIXED : C / G;
        for (long p = 0; p < P; p++) {
            #pragma omp simd
            for (long g = 0; g < G; g++) {
                A total = 0;
                for (long n = 0; n < N; n++) total += value(g * N + n, p * C + g * N + n);
                sums[p * G + g] = total;
            }
        }
    }
};

// Intermediate results of one image; each thread has one Scratch and reuses it.
struct Scratch {
    std::vector<A> agreement, mask, slope, mean, through_mean, deviation, scale, offset, share;
    Scratch(long C, long G, long P)
        : agreement(G * P), mask(G * P), slope(G * P), mean(C), through_mean(C), deviation(G), scale(G), offset(G),
          share(G) {}
};

// Fills in mean, agreement (standardised), deviation, scale (1 / (deviation + eps)) and mask.
template <typename Layout>
static void enhance(const Layout& layout, const T* x, const A* gamma, const A* beta, Scratch& s) {
    const long C = layout.C, G = layout.G, P = layout.P;
    A *mean = s.mean.data(), *agreement = s.agreement.data(), *mask = s.mask.data();
    A *deviation = s.deviation.data(), *scale = s.scale.data(), *offset = s.offset.data();
    layout.channel_sums([=](long i, long) { return load(x[i]); }, mean);
    for (long c = 0; c < C; c++) mean[c] /= P;
    layout.over_channels([=](long c, long i) { return mean[c] * load(x[i]); }, agreement);
    layout.group_sums([=](long j) { return agreement[j]; }, offset);
    for (long g = 0; g < G; g++) offset[g] /= P;
    layout.each_of_group([=](long g, long j) { agreement[j] -= offset[g]; });
    layout.group_sums([=](long j) { return agreement[j] * agreement[j]; }, scale);
    for (long g = 0; g < G; g++) {
        deviation[g] = std::sqrt(scale[g] / (P > 1 ? P - 1 : 1));
        scale[g] = 1 / (deviation[g] + A(1e-5));
    }
    layout.each_of_group([=](long g, long j) {
        agreement[j] *= scale[g];
        mask[j] = 1 / (1 + exponential(-(gamma[g] * agreement[j] + beta[g])));
    });
}

// Replaces the gradient of the mask, in `slope`, by the gradient of the agreement. Also computes the gradients of gamma
// and beta, and the gradient of each channel's mean, divided by the number of positions.
template <typename Layout>
static void through_mask(
    const Layout& layout, const T* x, const A* gamma, A* gamma_gradient, A* beta_gradient, Scratch& s
) {
    const long C = layout.C, G = layout.G, P = layout.P;
    A *agreement = s.agreement.data(), *mask = s.mask.data(), *slope = s.slope.data(), *deviation = s.deviation.data();
    A *scale = s.scale.data(), *offset = s.offset.data(), *share = s.share.data(), *sums = s.through_mean.data();
    layout.each_of_group([=](long, long j) { slope[j] *= mask[j] * (1 - mask[j]); });
    layout.group_sums([=](long j) { return slope[j]; }, beta_gradient);
    layout.group_sums([=](long j) { return slope[j] * agreement[j]; }, gamma_gradient);
    for (long g = 0; g < G; g++) {
        offset[g] = gamma[g] * beta_gradient[g] / P;
        share[g] = deviation[g] > 0 ? gamma[g] * gamma_gradient[g] / ((P > 1 ? P - 1 : 1) * deviation[g]) : A(0);
    }
    layout.each_of_group([=](long g, long j) {
        slope[j] = scale[g] * (gamma[g] * slope[j] - offset[g]) - share[g] * agreement[j];
    });
    layout.channel_sums([=](long i, long j) { return slope[j] * load(x[i]); }, sums);
    for (long c = 0; c < C; c++) sums[c] /= P;
}

template <typename Layout>
static void forward_one(
    const Layout& layout, const T* x, const A* gamma, const A* beta, T* gated, A* masks, Scratch& s
) {
    enhance(layout, x, gamma, beta, s);
    const A* mask = s.mask.data();
    if (masks) std::memcpy(masks, mask, s.mask.size() * sizeof(A));
    if (gated) layout.each([=](long, long i, long j) { store(load(x[i]) * mask[j], gated[i]); });
}

template <typename Layout>
static void backward_one(
    const Layout& layout, const T* x, const A* gamma, const A* beta, const T* gated, const A* masks, T* gradient,
    A* gamma_gradient, A* beta_gradient, Scratch& s
) {
    enhance(layout, x, gamma, beta, s);
    A *mask = s.mask.data(), *mean = s.mean.data(), *slope = s.slope.data(), *sums = s.through_mean.data();
    if (masks) std::memcpy(slope, masks, s.slope.size() * sizeof(A));
    if (gated) layout.over_channels([=](long, long i) { return load(gated[i]) * load(x[i]); }, slope);
    through_mask(layout, x, gamma, gamma_gradient, beta_gradient, s);
    if (gated)
        layout.each([=](long c, long i, long j) {
            store(load(gated[i]) * mask[j] + slope[j] * mean[c] + sums[c], gradient[i]);
        });
    else layout.each([=](long c, long i, long j) { store(slope[j] * mean[c] + sums[c], gradient[i]); });
}

// Calls act(layout) with the layout object of the images.
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

// Calls act(b, scratch) for each of B images.
template <typename F> static void for_images(long B, long C, long G, long P, int threads, F act) {
    #pragma omp parallel num_threads(threads)
    {
        Scratch scratch(C, G, P);
        #pragma omp for
        for (long b = 0; b < B; b++) act(b, scratch);
    }
}

// Returns array + index, or null if the array is null.
template <typename V> static V* at(V* array, long index) { return array ? array + index : nullptr; }

// From maps (B, C, P) computes the maps times their masks (`gated`) or the masks (B, G, P); the other pointer is null.
extern "C" void forward(
    const T* maps, const A* gamma, const A* beta, T* gated, A* masks, long B, long C, long G, long P, int channels_last,
    int threads
) {
    in_layout(C, G, P, channels_last, [=](const auto& layout) {
        for_images(B, C, G, P, threads, [=](long b, Scratch& s) {
            forward_one(layout, maps + b * C * P, gamma, beta, at(gated, b * C * P), at(masks, b * G * P), s);
        });
    });
}

// From the gradient of `gated` or of `masks` (the other is null) computes the gradient of the maps, and the gradients of
// gamma and beta per image, (B, G).
extern "C" void backward(
    const T* maps, const A* gamma, const A* beta, const T* gated, const A* masks, T* gradient, A* gamma_gradient,
    A* beta_gradient, long B, long C, long G, long P, int channels_last, int threads
) {
    in_layout(C, G, P, channels_last, [=](const auto& layout) {
        for_images(B, C, G, P, threads, [=](long b, Scratch& s) {
            const long start = b * C * P;
            backward_one(
                layout, maps + start, gamma, beta, at(gated, start), at(masks, b * G * P), gradient + start,
                gamma_gradient + b * G, beta_gradient + b * G, s
            );
        });
    });
}
