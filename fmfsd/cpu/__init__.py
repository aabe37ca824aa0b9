"""What only makes CPUs faster: C++ kernels, depthwise convolution, sums in shared memory.

Each module can be deleted on its own.
"""
