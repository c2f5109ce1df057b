"""Memory that was freed is kept for the next array: imported first by the programs that train.

A training step on a CPU allocates and frees hundreds of megabytes. By default glibc gives large
blocks back to the kernel at once, so that every step faults tens of thousands of pages in again.
This does what MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_=18446744073709551615 and
MALLOC_ARENA_MAX=1 do; the process then keeps the most memory that it ever had.
"""

import ctypes
import os
import platform

# From glibc's malloc.h, with the values that the three variables above give: -1 is the largest
# size. 2 GiB would not do: steps on long texts free more than that at once.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
SETTINGS = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1))


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed.

    It must come before NumPy and JAX are imported: glibc fixes the number of its arenas when a
    second thread first allocates. Elsewhere than on glibc, and where the user has set a MALLOC_
    variable, nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    for name, value in SETTINGS:
        libc.mallopt(name, value)


keep_freed_memory()
