"""What a module computes beside its weights: its classes, settings, hooks and replaced methods."""

import hashlib
from collections.abc import Callable, Collection, Iterator
from functools import partial
from types import CodeType, FunctionType

from torch import nn
from torch.nn.modules import module as torch_module

_KNOWN = ("torch", "timm", "vitviz_nb")  # packages whose functions do what their names say; others' are read
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_SWITCHES = ("training", "fused_attn", "grad_checkpointing")  # set by this package for each pass, and no matter to the result


def settings(module: nn.Module) -> dict[str, str]:
    """The plain attributes of a module's parts, as ``repr`` shows them, by path."""
    return {f"{path}.{key}": repr(value) for path, part in module.named_modules() for key, value in vars(part).items()
            if not key.startswith("_") and key not in _SWITCHES and _is_plain(value)}


def structure(module: nn.Module, ignored: Collection[str] = ()) -> str:
    """A hash of a module's parts: their classes, their ``settings`` but for those ``ignored``, the code of classes of others."""
    parts = [(path, _name(type(part)), part.extra_repr()) for path, part in module.named_modules()]
    used = [(path, value) for path, value in sorted(settings(module).items()) if path not in ignored]
    code = [(_name(kind), name, _code(function.__code__)) for kind, name, function in _methods(module) if not _is_known(kind)]
    configs = {id(part.config): part.config for part in module.modules() if hasattr(getattr(part, "config", None), "to_dict")}
    known = parts, used, code, *(config.to_dict() for config in configs.values())  # Hugging Face's, which passes read
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


def changes(module: nn.Module) -> list[str] | None:
    """Hooks of every kind and replaced methods, by path and name; None if one is not torch's, timm's or this package's.

    Such a function may compute anything, so what the module computes is unknown.
    """
    functions = [("global", hook) for hooks in (
        torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks, torch_module._global_backward_hooks,
        torch_module._global_backward_pre_hooks) for hook in hooks.values()]
    for path, part in module.named_modules():
        functions += [(path, hook) for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks,
                                                 part._backward_pre_hooks) for hook in hooks.values()]
        functions += [(f"{path}.{name}", value) for name, value in vars(part).items()
                      if callable(value) and not isinstance(value, (type, nn.Module))]
    functions += [(name, function) for kind, name, function in _methods(module) if _is_known(kind) and not _is_known(function)]
    if not all(_is_known(function) for _, function in functions):
        return None
    return [f"{path} {_name(_inner(function))}" for path, function in functions]


def _methods(module: nn.Module) -> Iterator[tuple[type, str, FunctionType]]:
    """(class, name, function) of every method of the parts' classes, but for nn.Module's own."""
    types = {type(part) for part in module.modules()}
    for kind in sorted({kind for each in types for kind in each.__mro__ if issubclass(kind, nn.Module)} - {nn.Module}, key=_name):
        yield from ((kind, name, value) for name, value in vars(kind).items() if isinstance(value, FunctionType))


def _inner(function: Callable) -> Callable:
    while isinstance(function, partial) or hasattr(function, "__func__"):
        function = function.func if isinstance(function, partial) else function.__func__
    return function if hasattr(function, "__qualname__") else type(function)


def _is_known(function: Callable) -> bool:
    return (getattr(_inner(function), "__module__", None) or "").partition(".")[0] in _KNOWN


def _name(function: Callable) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _is_plain(value) -> bool:
    return isinstance(value, _PLAIN) or isinstance(value, (tuple, list)) and all(_is_plain(each) for each in value)


def _code(code: CodeType) -> tuple:
    """The instructions, names and constants of a function, and of those inside it."""
    constants = tuple(_code(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts)
    return code.co_code, code.co_names, constants
