"""The machine's processor, and settings that make Paddle and engines faster on it."""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

MKL_SETTING = "MKL_DEBUG_CPU_TYPE"  # read by MKL up to 2020.0; Paddle 2.6 and 3.3 contain that of 2019
AVX2 = "5"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names of mallopt(3)
CPU_INFO = Path("/proc/cpuinfo")
WIDE_SUMS = {"avx512_vnni", "avx_vnni", "amx_int8"}  # flags of processors that add int8 products in 32 bits
FENV_BYTES, MXCSR = 32, 28  # size of fenv_t on x86-64 Linux, and the place of the SSE control word in it
FLUSH = 0x8040  # its bits: denormal results, and denormal operands, count as zero


def processor() -> str:
    """Return the processor's name."""
    return _fields().get("model name") or platform.processor() or platform.machine()


def has_wide_int8_sums() -> bool:
    """Return whether the processor adds products of int8 in 32 bits, so that none overflows: with VNNI, with
    AMX, and on ARM. Other x86 processors add pairs of them in 16 bits."""
    fields = _fields()
    return bool(WIDE_SUMS & set(fields.get("flags", "").split())) or "asimd" in fields.get("Features", "")


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Let this thread count numbers below float32's normal range as zero, and restore its setting at the end.

    Processors take 10 to 100 times as long for such numbers. Only on x86-64 Linux: elsewhere nothing happens.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        yield
        return
    library, saved = _c_library(), ctypes.create_string_buffer(FENV_BYTES)
    library.fegetenv(saved)
    word = int.from_bytes(saved.raw[MXCSR:], "little") | FLUSH
    library.fesetenv(saved.raw[:MXCSR] + word.to_bytes(FENV_BYTES - MXCSR, "little"))
    try:
        yield
    finally:
        library.fesetenv(saved)


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
    mallopt = getattr(_c_library(), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _fields() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo; empty if there is no such file."""
    try:
        first = CPU_INFO.read_text(encoding="utf-8").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
