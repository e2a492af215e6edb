"""Forward hooks that act only in the thread that registered them and are gone when no longer needed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules import module as torch_module

_OURS = ("vitviz_nb", "torch", "timm")  # packages whose hooks are part of the architecture, and fixed by its weights


class Stop(Exception):
    """Ends a forward pass once the last site has been read. Never leaves ``reading``."""


@contextmanager
def hooked(modules: dict[str, nn.Module], after: Callable | None = None, before: Callable | None = None) -> Iterator[None]:
    """While it is open, ``after(path, module, arguments, output)`` runs after, ``before(path, module, arguments)`` ahead of each
    module's forward, in this thread alone: passes of other threads do not see the hooks. Gone on success and on error.
    """
    mine, handles = threading.get_ident(), []

    def own(path: str, call: Callable) -> Callable:
        return lambda *arguments: call(path, *arguments) if threading.get_ident() == mine else None

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
    """Record (path, call number, ``keep(path, call number, output)``) of each call of ``modules``, in order."""
    calls, counts = [], dict.fromkeys(modules, 0)

    def record(path: str, module: nn.Module, arguments: tuple, output) -> None:
        calls.append((path, counts[path], keep(path, counts[path], output)))
        counts[path] += 1

    with hooked(modules, after=record):
        yield calls


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode (no dropout, batch statistics frozen) while it is open; a network in training is put back afterwards."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def callables(module: nn.Module) -> list[tuple[str, str, bool]]:
    """Everything that may change a forward pass beside weights and structure: (path, name of the function, whether it is known).

    Hooks of every kind, torch's global ones, and ``forward`` methods replaced on an instance. Functions of torch, timm and this
    package are known; any other may compute anything.
    """
    found = [("global", hook) for hooks in (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
             for hook in hooks.values()]
    for path, part in module.named_modules():
        found += [(path, hook) for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks,
                                             part._backward_pre_hooks) for hook in hooks.values()]
        if "forward" in part.__dict__:
            found.append((path, part.__dict__["forward"]))
    return [(path, *_origin(function)) for path, function in found]


def _origin(function: Callable) -> tuple[str, bool]:
    function = getattr(function, "__func__", function)
    named = function if hasattr(function, "__qualname__") else type(function)
    package = (getattr(named, "__module__", None) or "").partition(".")[0]
    return f"{named.__module__}.{named.__qualname__}", package in _OURS
