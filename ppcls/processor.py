"""The machine's processor, and two settings that make Paddle faster on it."""

import ctypes
import os
import platform
import sys
from pathlib import Path

MKL_SETTING = "MKL_DEBUG_CPU_TYPE"  # read by MKL up to 2020.0; Paddle 2.6 and 3.3 contain that of 2019
AVX2 = "5"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names of mallopt(3)
CPU_INFO = Path("/proc/cpuinfo")


def processor() -> str:
    """Return the processor's name."""
    return _fields().get("model name") or platform.processor() or platform.machine()


def use_fast_matrix_products() -> None:
    """Make Paddle's MKL use AVX2 on AMD's processors: matrix products are 3 to 4 times as fast.

    By default MKL uses its slowest kernels on all processors but Intel's. Call this before the first product.
    A setting that the user made stays.
    """
    fields = _fields()
    flags = fields.get("flags", "").split()
    if fields.get("vendor_id") == "AuthenticAMD" and "avx2" in flags and "fma" in flags:
        os.environ.setdefault(MKL_SETTING, AVX2)


def keep_freed_memory() -> None:
    """Make the C library keep freed memory, so that the next training step reuses it.

    By default the memory of each large tensor is mapped again and filled with zeros, which takes a tenth of a
    training step on a CPU. Only glibc has this setting: with other libraries nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _fields() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo; empty if there is no such file."""
    try:
        first = CPU_INFO.read_text(encoding="utf-8").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
