// What batch normalisation over several workers reads and writes maps for beside PyTorch's own passes: their moments in
// one pass, and their gradient in one. Maps are (B, C, P). Results don't depend on the number of threads.

#include <vector>

#include "stored.h"

constexpr long BLOCK = 64;   // positions that are added up in A, before these sums are in double
constexpr long PARTS = 16;   // of a batch
constexpr long LOOKS = 64;   // positions that tell about where a channel's values are

// Adds to sums[c] and sums[C + c] what rows of C channels are beyond shift[c], and its square.
static void add_rows(const T* x, long rows, long C, const A* shift, double* sums) {
    std::vector<A> some(2 * C);
    A *first = some.data(), *second = first + C;
    for (long begin = 0; begin < rows; begin += BLOCK) {
        for (long i = 0; i < 2 * C; i++) some[i] = 0;
        for (long row = begin; row < rows && row < begin + BLOCK; row++) {
            #pragma omp simd
            for (long c = 0; c < C; c++) {
                const A beyond = load(x[row * C + c]) - shift[c];
                first[c] += beyond;
                second[c] += beyond * beyond;
            }
        }
        for (long i = 0; i < 2 * C; i++) sums[i] += some[i];
    }
}

// The same of one channel's P positions.
static void add_plane(const T* x, long P, A shift, double& first, double& second) {
    for (long begin = 0; begin < P; begin += 16 * BLOCK) {
        const long end = begin + 16 * BLOCK < P ? begin + 16 * BLOCK : P;
        A some = 0, squares = 0;
        #pragma omp simd reduction(+ : some, squares)
        for (long p = begin; p < end; p++) {
            const A beyond = load(x[p]) - shift;
            some += beyond;
            squares += beyond * beyond;
        }
        first += some;
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

// Near the mean of a channel, as the mean of a few positions all over the batch is.
static A near_mean(const T* x, long B, long C, long P, bool channels_last, long c) {
    const long positions = B * P, looks = positions < LOOKS ? positions : LOOKS;
    double sum = 0;
    for (long look = 0; look < looks; look++) {
        const long position = look * positions / looks, b = position / P, p = position % P;
        sum += load(x[channels_last ? position * C + c : (b * C + c) * P + p]);
    }
    return sum / looks;
}

// Each channel's mean, and behind all these its mean square: (2, C). Sums are of what values are beyond one near the
// mean, so that a mean far from zero costs no digits.
extern "C" void moments(const T* x, double* found, long B, long C, long P, int channels_last, int threads) {
    std::vector<A> shift(C);
    for (long c = 0; c < C; c++) shift[c] = near_mean(x, B, C, P, channels_last, c);
    for (long i = 0; i < 2 * C; i++) found[i] = 0;
    (channels_last ? sums_of_pixels : sums_of_planes)(x, B, C, P, shift.data(), found, threads);
    for (long c = 0; c < C; c++) {
        const double beyond = found[c] / (B * P), variance = found[C + c] / (B * P) - beyond * beyond;
        found[c] = shift[c] + beyond;
        found[C + c] = variance + found[c] * found[c];
    }
}

// result = of_one * one + of_other * other + offset, with (C,) factors.
extern "C" void combine(
    const T* one, const T* other, const A* of_one, const A* of_other, const A* offset, T* result, long B, long C, long P,
    int channels_last, int threads
) {
    const long rows = channels_last ? B * P : B * C, length = channels_last ? C : P;
    #pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row++) {
        const T *x = one + row * length, *y = other + row * length;
        T* z = result + row * length;
        if (channels_last) {
            #pragma omp simd
            for (long c = 0; c < C; c++) store(of_one[c] * load(x[c]) + of_other[c] * load(y[c]) + offset[c], z[c]);
        } else {
            const A a = of_one[row % C], b = of_other[row % C], c = offset[row % C];
            #pragma omp simd
            for (long p = 0; p < P; p++) store(a * load(x[p]) + b * load(y[p]) + c, z[p]);
        }
    }
}
