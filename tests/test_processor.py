"""What is set for Paddle to be fast on this machine's processor."""

import os
import subprocess
import sys

import pytest

from ppcls import processor
from ppcls.distributed import import_paddle

AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse2 fma avx avx2\n"
INTEL = AMD.replace("AuthenticAMD", "GenuineIntel").replace("AMD EPYC", "Xeon: a name")


@pytest.fixture
def cpu_info(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "CPU_INFO", file)
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "")  # so that what a test leaves is undone
    monkeypatch.delenv("MKL_DEBUG_CPU_TYPE")
    return file


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        (AMD, "5"),
        (f"{AMD}\n{INTEL}", "5"),
        (INTEL, None),
        (AMD.replace(" avx2", ""), None),
        (AMD.replace(" fma", ""), None),
        ("", None),
    ],
)
def test_only_amd_with_avx2_is_told_of_it(cpu_info, monkeypatch, text, setting):
    cpu_info.write_text(text)
    processor.use_fast_matrix_products()
    assert os.environ.get("MKL_DEBUG_CPU_TYPE") == setting
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "4")  # one's own choice stays
    processor.use_fast_matrix_products()
    assert os.environ["MKL_DEBUG_CPU_TYPE"] == "4"


def test_importing_paddle_sets_it(cpu_info):
    cpu_info.write_text(AMD)
    import_paddle()
    assert os.environ["MKL_DEBUG_CPU_TYPE"] == "5"


def test_names(cpu_info):
    assert processor.processor()  # without a file
    cpu_info.write_text(INTEL)
    assert processor.processor() == "Xeon: a name"


def test_processors_that_add_int8_products_in_32_bits(cpu_info):
    for text, has_sums in (
        (AMD, False),
        (AMD.replace("avx2", "avx2 avx512_vnni"), True),
        (AMD.replace("avx2", "avx2 avx_vnni"), True),
        (AMD.replace("avx2", "avx2 amx_int8"), True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", True),
        ("processor\t: 0\nFeatures\t: fp\n", False),
    ):
        cpu_info.write_text(text)
        assert processor.has_wide_int8_sums() == has_sums


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_kept():
    """Page faults of touching 32 MiB again and again: none once the memory is kept."""
    code = (
        "import resource, sys; from ppcls.processor import keep_freed_memory\n"
        "if len(sys.argv) > 1: keep_freed_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "bytearray(2**25)\n"
        "before = faults()\n"
        "for _ in range(10): bytearray(2**25)\n"
        "print(faults() - before)\n"
    )
    default, kept = (
        int(subprocess.run([sys.executable, "-c", code, *more], capture_output=True, check=True).stdout)
        for more in ([], ["keep"])
    )
    assert kept < 1000 < 10_000 < default
