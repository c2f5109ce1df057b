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


def page_faults(**environment: str) -> list[int]:
    """Page faults of filling 256 MiB three times, each freed before the next."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_memory_is_faulted_in_once():
    first, *later = page_faults()
    assert max(later) < first / 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_the_users_own_setting_stands():
    first, *later = page_faults(MALLOC_MMAP_MAX_="65536")  # glibc's default
    assert min(later) > first / 2
