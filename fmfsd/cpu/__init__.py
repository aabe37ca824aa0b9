"""Optional speed-ups for CPUs: C++ kernels, depthwise convolution, all-reduce through shared memory."""
