"""Forward hooks that act only in the thread that registered them and are gone when no longer needed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from ..utils.errors import VitvizError


class Stop(Exception):
    """Ends a forward pass once the last site has been read. Never leaves ``reading``."""


@contextmanager
def hooked(modules: dict[str, nn.Module], after: Callable | None = None, before: Callable | None = None) -> Iterator[None]:
    """Run ``before(path, module, arguments)`` ahead of and ``after(path, module, arguments, output)`` behind each forward.

    Only passes of this thread see the hooks. They are gone on success and on error.
    """
    thread, handles = threading.get_ident(), []

    def own(path: str, call: Callable) -> Callable:
        return lambda *arguments: call(path, *arguments) if threading.get_ident() == thread else None

    try:
        for path, module in modules.items():
            if after:
                handles.append(module.register_forward_hook(own(path, after)))
            if before:
                handles.append(module.register_forward_pre_hook(own(path, before)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watch(modules: dict[str, nn.Module], keep: Callable) -> Iterator[list[tuple]]:
    """Record (path, call number, ``keep(path, call number, arguments, output)``) of each call of ``modules``, in order."""
    calls, counts = [], dict.fromkeys(modules, 0)

    def record(path: str, module: nn.Module, arguments: tuple, output) -> None:
        calls.append((path, counts[path], keep(path, counts[path], arguments, output)))
        counts[path] += 1

    with hooked(modules, after=record):
        yield calls


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode (no dropout, batch statistics frozen) while it is open; a network in training is put back afterwards.

    Gradient checkpointing, which runs a part again in the backward pass, is off: a pass that has ended at a site cannot be.
    """
    training = [part for part in module.modules() if part.training]
    checkpointed = [part for part in module.modules() if vars(part).get("grad_checkpointing") is True]
    for part in training:
        part.training = False
    for part in checkpointed:
        part.grad_checkpointing = False
    try:
        yield
        if any(part.training for part in module.modules()):
            raise VitvizError("The network was put into training mode by another thread during a forward pass, so the pass is of "
                              "no use; train and measure one after the other.")
    finally:
        for part in training:
            part.training = True
        for part in checkpointed:
            part.grad_checkpointing = True
