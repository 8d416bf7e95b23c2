"""A stack of their own for the handlers of signals.

oneDNN's products for AVX2, "gemm:jit", keep the address of a buffer in the stack pointer while they compute.
To call a handler, the system writes some 11 kB below it, over whatever is there in the heap, unless the
thread has a stack for handlers. Python asks for that one (SA_ONSTACK), but provides none. OpenMP's threads
have none either: the system gives a process's signals to its first thread, unless that has one pending.
"""

import ctypes
import sys

SIZE = 2**18  # bytes; Python's handler only notes the signal
DISABLED = 2  # SS_DISABLE of signal.h: the thread has no such stack


class _Stack(ctypes.Structure):
    """stack_t of signal.h."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def has_signal_stack() -> bool:
    """Return whether this thread has a stack for handlers: faulthandler provides one, too."""
    found = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return not found.flags & DISABLED


def use_signal_stack() -> ctypes.Array | None:
    """Give this thread a stack for handlers, unless it has one.

    Return its memory, which the thread must keep.
    """
    if sys.platform != "linux" or has_signal_stack():
        return None
    memory = ctypes.create_string_buffer(SIZE)
    own = _Stack(ctypes.addressof(memory), 0, SIZE)
    ctypes.CDLL(None).sigaltstack(ctypes.byref(own), None)
    return memory
