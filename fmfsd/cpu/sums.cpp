// All-reduce (sum) over the workers of one host, through shared memory.
//
// The segment starts with a seat per worker: the number of its latest turn, and how many bytes it adds in that turn.
// Behind the seats are two halves with a slot per worker. In every turn a worker writes its values, times a factor, to
// its slot in the turn's half, publishes the turn number in its seat, and adds up all slots in rank order. A worker that
// starts turn t + 2 has seen all workers start turn t + 1, so all of them have read the slots that it overwrites.

#include <poll.h>
#include <sched.h>
#include <time.h>

#include <atomic>
#include <cstdint>
#include <cstring>

constexpr long SEAT = 64, SLOT = 1 << 18;     // bytes: a cache line, and a size of which two fit into a core's cache
constexpr long POLLS = 2000, PAUSE = 100000;  // polls with sched_yield between them, about 1 ms; then ns of sleep
enum Outcome { DONE, ENDED, LATE, UNLIKE };   // shared_memory_sums.py has the same values

struct Seat {
    std::atomic<int64_t> turn;
    int64_t bytes[2];  // for the turn of each half
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

// Waits until the worker with that seat has reached the turn. `process` is its pidfd: readable once it has ended.
static Outcome wait(const std::atomic<int64_t>& seat, int64_t turn, int process, double deadline) {
    for (long polls = 0; seat.load(std::memory_order_acquire) < turn; polls++) {
        if (polls < POLLS) {
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

// A worker's rank in the segment, the pidfds of the workers it waits for, and its deadline.
struct Worker {
    const Segment segment;
    const long rank;
    const int* const processes;
    const double deadline;

    // Replaces values by the sum over all workers, each times the factor. Returns 0, or outcome * workers + the rank
    // that caused it.
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
            const Outcome outcome = wait_for(other, turn, bytes);
            if (outcome != DONE) return outcome * segment.workers + other;
        }
        add_up(segment, turn, count, values);
        return 0;
    }

    Outcome wait_for(long other, int64_t turn, int64_t bytes) const {
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
