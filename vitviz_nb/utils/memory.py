"""Memory on small machines."""

import ctypes
from contextlib import suppress


def release_memory() -> None:
    """Return freed memory to the system where glibc would keep it: Binder kills a kernel for all it holds, used or not."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
