"""Memory on small machines."""

import ctypes
from contextlib import suppress


def release_memory() -> None:
    """Hand freed memory back to the system where glibc would keep it: Binder ends a kernel for what it holds, used or not."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
