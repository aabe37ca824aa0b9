// T is the storage type of maps, A the type of the arithmetic: compile with -DT=Half|float|double -DA=float|double.

#include <cstdint>
#include <cstring>

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
