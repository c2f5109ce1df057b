"""Freed memory is kept: seen in the page faults of a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import dpbert_jax.allocator
assert not {"numpy", "jax"} & sys.modules.keys()  # else it would come too late

import resource, threading

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def fill():
    b"1" * 2**28  # 65,536 pages, or 128 huge ones

found = []
for _ in range(3):
    began = faults()
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
    found.append(faults() - began)
print(*found)
"""


HEAP = """
import dpbert_jax.allocator
import ctypes

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.free(libc.malloc(3 * 2**30))  # never written to: it takes addresses, but no memory
grown = libc.sbrk(0)
libc.free(libc.malloc(3 * 2**30))
print(grown - int(open("/proc/self/stat").read().split()[46]), libc.sbrk(0) - grown)
"""


def numbers(program: str, **environment: str) -> list[int]:
    """What a program prints in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(word) for word in done.stdout.split()]


def page_faults(**environment: str) -> list[int]:
    """Page faults of filling 256 MiB three times, each freed before the next."""
    return numbers(PROGRAM, **environment)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_memory_is_faulted_in_once():
    first, *later = page_faults()
    assert max(later) < first / 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_what_is_freed_is_kept_however_much_it_is():
    grown, changed = numbers(HEAP)
    assert grown > 3 * 2**30 and changed == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_the_users_own_setting_stands():
    first, *later = page_faults(MALLOC_MMAP_MAX_="65536")  # glibc's default
    assert min(later) > first / 2
