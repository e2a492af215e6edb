"""Forward hooks that are gone when they are no longer needed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def watch(modules: dict[str, nn.Module], keep: Callable) -> Iterator[list[tuple]]:
    """Record (path, call number, ``keep(path, call number, output)``) of each call of ``modules``, in order.

    Hooks go on success and on error.
    """
    calls, counts, handles = [], dict.fromkeys(modules, 0), []

    def hook(path):
        def record(module, arguments, output):
            calls.append((path, counts[path], keep(path, counts[path], output)))
            counts[path] += 1

        return record

    try:
        for path, module in modules.items():
            handles.append(module.register_forward_hook(hook(path)))
        yield calls
    finally:
        for handle in handles:
            handle.remove()
