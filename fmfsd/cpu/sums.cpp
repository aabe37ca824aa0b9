// Sums over the workers of one host, through memory that they share.
//
// The segment has a seat for each worker, with the number of its latest turn and how many bytes it adds up in it, and
// behind these two halves with a slot for each worker. In every turn a worker puts its part, times a factor, into its
// slot of the turn's half, says so in its seat, and adds up all slots, by rank. Who begins turn t + 2 has seen everybody
// begin t + 1, so all have read what it is about to overwrite.

#include <poll.h>
#include <sched.h>
#include <time.h>

#include <atomic>
#include <cstdint>
#include <cstring>

constexpr long SEAT = 64, SLOT = 1 << 18;     // bytes: a cache line, and what two slots of fit into a core's cache
constexpr long LOOKS = 2000, PAUSE = 100000;  // with the core left to others between looks, about 1 ms; then ns of sleep
enum Outcome { DONE, ENDED, LATE, UNLIKE };  // shared_sums.py has them too

struct Seat {
    std::atomic<int64_t> turn;
    int64_t bytes[2];  // of either half's turn
};

struct Segment {
    char* const start;
    const long workers;

    Seat& seat(long rank) const { return *reinterpret_cast<Seat*>(start + rank * SEAT); }
    char* slot(int64_t turn, long rank) const { return start + workers * SEAT + ((turn % 2) * workers + rank) * SLOT; }
};

static double seconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

// Until the worker with that seat has come to the turn. `process` can be read from when it has ended.
static Outcome wait(const std::atomic<int64_t>& seat, int64_t turn, int process, double deadline) {
    for (long looks = 0; seat.load(std::memory_order_acquire) < turn; looks++) {
        if (looks < LOOKS) {
            sched_yield();
            continue;
        }
        pollfd watched{process, POLLIN, 0};
        const timespec pause{0, PAUSE};
        const bool ended = ppoll(&watched, 1, &pause, nullptr) > 0;
        if (seat.load(std::memory_order_acquire) >= turn) break;
        if (ended) return ENDED;
        if (seconds() > deadline) return LATE;
    }
    return DONE;
}

template <typename V> static void add_up(const Segment& segment, int64_t turn, long count, V* values) {
    std::memcpy(values, segment.slot(turn, 0), count * sizeof(V));
    for (long rank = 1; rank < segment.workers; rank++) {
        const V* part = reinterpret_cast<const V*>(segment.slot(turn, rank));
        #pragma omp simd
        for (long i = 0; i < count; i++) values[i] += part[i];
    }
}

// A worker's place in the segment, whom it waits for, and until when.
struct Worker {
    const Segment segment;
    const long rank;
    const int* const processes;
    const double deadline;

    // Values become all workers' sum, each times the factor. What it came to, times the workers, and whose fault that is.
    template <typename V> long sum(V factor, V* values, long count) const {
        constexpr long most = SLOT / sizeof(V);
        for (long begin = 0; begin < count; begin += most)
            if (long fault = turn(factor, values + begin, count - begin < most ? count - begin : most)) return fault;
        return 0;
    }

    template <typename V> long turn(V factor, V* values, long count) const {
        Seat& own = segment.seat(rank);
        const int64_t turn = own.turn.load(std::memory_order_relaxed) + 1, bytes = count * sizeof(V);
        V* slot = reinterpret_cast<V*>(segment.slot(turn, rank));
        #pragma omp simd
        for (long i = 0; i < count; i++) slot[i] = factor * values[i];
        own.bytes[turn % 2] = bytes;
        own.turn.store(turn, std::memory_order_release);
        for (long other = 0; other < segment.workers; other++) {
            const Outcome outcome = come(other, turn, bytes);
            if (outcome != DONE) return outcome * segment.workers + other;
        }
        add_up(segment, turn, count, values);
        return 0;
    }

    Outcome come(long other, int64_t turn, int64_t bytes) const {
        const Seat& seat = segment.seat(other);
        const Outcome outcome = wait(seat.turn, turn, processes[other], deadline);
        return outcome == DONE && seat.bytes[turn % 2] != bytes ? UNLIKE : outcome;
    }
};

extern "C" long segment_bytes(long workers) { return workers * (SEAT + 2 * SLOT); }

extern "C" long sum_float(
    char* start, long workers, long rank, const int* processes, double timeout_s, double factor, float* values, long count
) {
    return Worker{{start, workers}, rank, processes, seconds() + timeout_s}.sum(float(factor), values, count);
}

extern "C" long sum_double(
    char* start, long workers, long rank, const int* processes, double timeout_s, double factor, double* values,
    long count
) {
    return Worker{{start, workers}, rank, processes, seconds() + timeout_s}.sum(factor, values, count);
}
