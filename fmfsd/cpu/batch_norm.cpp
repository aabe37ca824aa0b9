// The passes over maps that synchronised batch normalisation adds to PyTorch's own: moments in one pass, and the gradient
// in one pass. Maps are (B, C, P). Results don't depend on the number of threads.

#include <vector>

#include "element_types.h"

constexpr long BLOCK = 64;    // positions that are summed in A before their sum is added in double
constexpr long PARTS = 16;    // parts of a batch that are summed separately
constexpr long SAMPLES = 64;  // positions that are sampled to estimate a channel's mean

// Adds each row's deviation from shift[c] to sums[c], and its square to sums[C + c]. Rows have C channels.
static void add_rows(const T* x, long rows, long C, const A* shift, double* sums) {
    std::vector<A> partial(2 * C);
    A *first = partial.data(), *second = first + C;
    for (long begin = 0; begin < rows; begin += BLOCK) {
        for (long i = 0; i < 2 * C; i++) partial[i] = 0;
        for (long row = begin; row < rows && row < begin + BLOCK; row++) {
            #pragma omp simd
            for (long c = 0; c < C; c++) {
                const A deviation = load(x[row * C + c]) - shift[c];
                first[c] += deviation;
                second[c] += deviation * deviation;
            }
        }
        for (long i = 0; i < 2 * C; i++) sums[i] += partial[i];
    }
}

// The same for the P positions of one channel.
static void add_plane(const T* x, long P, A shift, double& first, double& second) {
    for (long begin = 0; begin < P; begin += 16 * BLOCK) {
        const long end = begin + 16 * BLOCK < P ? begin + 16 * BLOCK : P;
        A partial = 0, squares = 0;
        #pragma omp simd reduction(+ : partial, squares)
        for (long p = begin; p < end; p++) {
            const A deviation = load(x[p]) - shift;
            partial += deviation;
            squares += deviation * deviation;
        }
        first += partial;
        second += squares;
    }
}

static void sums_of_pixels(const T* x, long B, long C, long P, const A* shift, double* sums, int threads) {
    std::vector<double> parts(PARTS * 2 * C);
    #pragma omp parallel for num_threads(threads)
    for (long part = 0; part < PARTS; part++) {
        const long begin = part * B * P / PARTS, end = (part + 1) * B * P / PARTS;
        add_rows(x + begin * C, end - begin, C, shift, &parts[part * 2 * C]);
    }
    for (long part = 0; part < PARTS; part++)
        for (long i = 0; i < 2 * C; i++) sums[i] += parts[part * 2 * C + i];
}

static void sums_of_planes(const T* x, long B, long C, long P, const A* shift, double* sums, int threads) {
    #pragma omp parallel for num_threads(threads)
    for (long c = 0; c < C; c++)
        for (long b = 0; b < B; b++) add_plane(x + (b * C + c) * P, P, shift[c], sums[c], sums[C + c]);
}

// Estimates the mean of channel c from a few positions spread over the batch.
static A near_mean(const T* x, long B, long C, long P, bool channels_last, long c) {
    const long positions = B * P, samples = positions < SAMPLES ? positions : SAMPLES;
    double sum = 0;
    for (long sample = 0; sample < samples; sample++) {
        const long position = sample * positions / samples, b = position / P, p = position % P;
        sum += load(x[channels_last ? position * C + c : (b * C + c) * P + p]);
    }
    return sum / samples;
}

// Writes each channel's mean, then each channel's mean square: (2, C). The sums are over deviations from an estimate of
// the mean, so that a mean far from zero loses no precision.
extern "C" void moments(const T* x, double* result, long B, long C, long P, int channels_last, int threads) {
    std::vector<A> shift(C);
    for (long c = 0; c < C; c++) shift[c] = near_mean(x, B, C, P, channels_last, c);
    for (long i = 0; i < 2 * C; i++) result[i] = 0;
    (channels_last ? sums_of_pixels : sums_of_planes)(x, B, C, P, shift.data(), result, threads);
    for (long c = 0; c < C; c++) {
        const double deviation = result[c] / (B * P), variance = result[C + c] / (B * P) - deviation * deviation;
        result[c] = shift[c] + deviation;
        result[C + c] = variance + result[c] * result[c];
    }
}

// result = scale1 * one + scale2 * other + offset, with (C,) factors.
extern "C" void combine(
    const T* one, const T* other, const A* scale1, const A* scale2, const A* offset, T* result, long B, long C, long P,
    int channels_last, int threads
) {
    const long rows = channels_last ? B * P : B * C, length = channels_last ? C : P;
    #pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row++) {
        const T *x = one + row * length, *y = other + row * length;
        T* z = result + row * length;
        if (channels_last) {
            #pragma omp simd
            for (long c = 0; c < C; c++) store(scale1[c] * load(x[c]) + scale2[c] * load(y[c]) + offset[c], z[c]);
        } else {
            const A a = scale1[row % C], b = scale2[row % C], c = offset[row % C];
            #pragma omp simd
            for (long p = 0; p < P; p++) store(a * load(x[p]) + b * load(y[p]) + c, z[p]);
        }
    }
}
