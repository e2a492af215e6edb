"""Sites: the places of a model that can be read, found by watching one forward pass.

A site is a layer number and a kind. Nothing here knows a model family: MLP units are the ``act`` of every
``timm.layers.Mlp``, in the order of their calls; queries, keys and values are the outputs of the linear layers that make
them; a block is the module that owns an Mlp. Prefix tokens (class, distillation, registers) are those by which the
tokens outnumber a square, counted at each site, because the number changes within some models (ConViT).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from numbers import Integral

import torch
from timm.layers import GELU, GELUTanh, GlobalResponseNormMlp, Mlp, QuickGELU
from torch import nn

from .errors import VitvizError, nearest
from .models import VisionModel

KINDS = {
    "mlp": "hidden units of the MLP, after the activation",
    "query": "what a token asks for, before the heads are split",
    "key": "what a token answers to, before the heads are split",
    "value": "what a token hands on, before the heads are split",
    "attention": "what the attention layer adds to the residual stream",
    "residual": "the residual stream after the block",
    "channel": "channels of a CNN, after each activation function",
}
# Linear layers that make queries, keys and values, by timm's names: what each share of their output is.
_PROJECTIONS = {
    "qkv": ("query", "key", "value"), "qk": ("query", "key"), "kv": ("key", "value"), "q": ("query",), "k": ("key",),
    "v": ("value",), "q_proj": ("query",), "k_proj": ("key",), "v_proj": ("value",),
}
_MOST_PREFIX = 8  # class, distillation and up to a handful of register tokens
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.PReLU, nn.Tanh)
# Activation functions that look at one unit at a time and treat all alike.
_ONE_BY_ONE = {*_ACTIVATIONS, GELU, GELUTanh, QuickGELU} - {nn.PReLU}


@dataclass(frozen=True)
class Site:
    """One place of a model.

    Attributes:
        kind, layer: its address; ``layer`` counts from 0 in forward order within the kind.
        units: how many neurons it has.
        prefix: tokens before the patch tokens (0 for CNNs and windows).
        grid: (rows, columns) of the patch tokens, in raster order over the image; None where they are not in that order.
        path: the module's name in the timm model; ``call`` says which of its calls (CoaT calls one Mlp several times).
        part: (index, of how many) equal shares of the module's output the units are.
        last: whether units are the last dimension of the output (False for NCHW).
        own: int64 (N,), where only one unit of each input is wanted, which it is; None for all of them.
    """

    kind: str
    layer: int
    units: int
    prefix: int
    grid: tuple[int, int] | None
    path: str
    call: int
    part: tuple[int, int] = (0, 1)
    last: bool = True
    own: torch.Tensor | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.kind} layer {self.layer}"


class _Stop(Exception):
    """Ends a forward pass once the site has been read."""


def sites(model: VisionModel) -> dict[str, list[Site]]:
    """Every site of ``model`` by kind, each list in forward order; kinds the model lacks are absent. Found once a model."""
    if "sites" not in model.memo:
        model.memo["sites"] = _find(model)
    return model.memo["sites"]


def site(model: VisionModel, layer: int, kind: str = "mlp") -> Site:
    """The site at an address.

    Raises:
        VitvizError: a kind the model lacks, or a layer out of range; negative layers count from the end, as in Python.
    """
    found = sites(model)
    if kind not in found:
        hint = "" if kind in KINDS else nearest(kind, KINDS)
        raise VitvizError(f"{model.name} has no sites of kind {kind!r}; it has {', '.join(found) or 'none'}.{hint}")
    layers = found[kind]
    if not isinstance(layer, Integral):
        raise VitvizError(f"A layer is a whole number, 0 to {len(layers) - 1}, got {layer!r}.")
    if not -len(layers) <= layer < len(layers):
        raise VitvizError(f"{model.name} has no {kind} layer {layer}; its layers are 0 to {len(layers) - 1} "
                          f"(or -1 for the last).")
    return layers[layer]


def check_neurons(place: Site, neurons) -> list[int]:
    """The neurons as a list of ints; VitvizError if one is out of range, named twice, or there is none."""
    neurons = list(neurons) if isinstance(neurons, Iterable) else [neurons]
    if any(not isinstance(n, Integral) for n in neurons):
        raise VitvizError(f"Neurons are whole numbers, 0 to {place.units - 1}, got {neurons!r}.")
    neurons = [int(n) for n in neurons]
    outside = [n for n in neurons if not 0 <= n < place.units]
    if outside or not neurons or len(set(neurons)) < len(neurons):
        wrong = f"neuron {outside[0]} is out of range" if outside else "the same neuron twice" if neurons else "none was named"
        raise VitvizError(f"The {place} has neurons 0 to {place.units - 1}; {wrong}.")
    return neurons


def tokens(model: VisionModel, place: Site, inputs: torch.Tensor, leak: float = 0.0) -> torch.Tensor:
    """Activations at a site: (N, patch tokens, units) of *normalised* inputs (N, 3, H, W); gradients flow.

    With ``leak``, that share of the activation function's input is added to its output (see ``Recipe.leak``); sites that are
    no activation function's output ignore it. With ``place.own`` the answer has one unit, input n's being ``place.own[n]``.
    The forward pass ends at the site, and the hooks are gone when this returns, however it returns.
    """
    found, before, calls = [], [], 0
    leak = leak if place.kind in ("mlp", "channel") else 0.0
    hidden, act = (None, None) if place.own is None else _hidden(model, place)

    def keep(module, arguments):
        before[:] = [arguments[0].clone()]  # some activation functions work in place

    def read(module, arguments, output):
        nonlocal calls
        calls += 1
        if calls == place.call + 1:
            found.append(output + leak * before[0] if leak else output)
            raise _Stop

    def read_own(module, arguments):  # all hidden units of the last layer needed cost as much as a third of a block
        nonlocal calls
        calls += 1
        if calls == place.call + 1:
            # Not as a product of matrices: those with a vector are slow, on a card and on a CPU.
            into = arguments[0].reshape(len(inputs), -1, arguments[0].shape[-1]) * hidden.weight[place.own][:, None]
            into = into.sum(-1, keepdim=True)
            if hidden.bias is not None:
                into = into + hidden.bias[place.own][:, None, None]
            found.append(act(into.clone()) + leak * into if leak else act(into))
            raise _Stop

    with model.lock:
        module = model.module.get_submodule(place.path)
        handles = [hidden.register_forward_pre_hook(read_own)] if hidden else [module.register_forward_hook(read)]
        if leak and not hidden:
            handles.append(module.register_forward_pre_hook(keep))
        try:
            model.module(inputs)
        except _Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
    if not found:
        raise VitvizError(f"{place.path} of {model.name} was called {calls} times, not {place.call + 1} as when its sites were "
                          f"found: the model changed since; load it again.")
    read_there = _patch_tokens(place, found[0], len(inputs))
    if place.own is None or hidden:
        return read_there
    return read_there.gather(2, place.own[:, None, None].expand(-1, read_there.shape[1], 1))


def _patch_tokens(place: Site, output: torch.Tensor, n: int) -> torch.Tensor:
    if not place.last:
        return output.flatten(2).transpose(1, 2)
    # Windows and NHWC maps fold into one token axis: windows of an image follow each other in the batch.
    output = output.reshape(n, -1, output.shape[-1])[:, place.prefix :]
    return output.chunk(place.part[1], -1)[place.part[0]]


def _hidden(model: VisionModel, place: Site) -> tuple[nn.Linear, nn.Module] | tuple[None, None]:
    """The layer that makes a site's hidden units and the function applied to each alone; (None, None) where it is not so.

    Nor where either has hooks, such as a doctored network's: they expect, and may change, all units.
    """
    mlp = model.module.get_submodule(place.path.rpartition(".")[0])
    if place.kind != "mlp" or type(mlp) not in (Mlp, GlobalResponseNormMlp) or type(mlp.fc1) is not nn.Linear:
        return None, None
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in (mlp.fc1, mlp.act))
    return (None, None) if hooked or type(mlp.act) not in _ONE_BY_ONE else (mlp.fc1, mlp.act)


def activations(model: VisionModel, kind: str, images: torch.Tensor) -> list[torch.Tensor]:
    """Mean over patch tokens at every site of a kind, from one forward pass: per layer float32 (N, units), on the CPU.

    Args:
        images: RGB in [0, 1], (N, 3, image_size, image_size).
    """
    return each_layer(model, kind, images, lambda place, found: found.mean(1))


def each_layer(model: VisionModel, kind: str, images: torch.Tensor, keep: Callable[[Site, torch.Tensor], torch.Tensor],
               prefix: bool = False) -> list[torch.Tensor]:
    """``keep(site, tokens)`` at every site of a kind, from one forward pass: per layer, on the CPU (see ``at_sites``)."""
    return at_sites(model, sites(model)[kind], images, keep, prefix)


@torch.inference_mode()
def at_sites(model: VisionModel, places: list[Site], images: torch.Tensor, keep: Callable[[Site, torch.Tensor], torch.Tensor],
             prefix: bool = False) -> list[torch.Tensor]:
    """``keep(site, tokens)`` at sites of any kinds, from one forward pass: one tensor a site, on the CPU.

    Args:
        images: RGB in [0, 1], (N, 3, image_size, image_size).
        keep: what to keep of the tokens (N, patch tokens, units), float32: all sites' tokens together fill a memory, and a
            later layer may work in place on this one's.
        prefix: True to have the ``site.prefix`` class tokens, too, in front of the patch tokens.
    """
    def found(path, call, output):
        here = [p for p in places if (p.path, p.call) == (path, call)]
        cut = [replace(p, prefix=0) if prefix else p for p in here]
        return {p: keep(p, _patch_tokens(c, output, len(images)).float()).cpu() for p, c in zip(here, cut, strict=True)}

    with model.lock, _watch({p.path: model.module.get_submodule(p.path) for p in places}, found) as calls:
        model.module(model.normalize(images.to(model.device)))
    kept = {place: values for _, _, here in calls for place, values in here.items()}
    return [kept[place] for place in places]


@contextmanager
def _watch(modules: dict[str, nn.Module], keep: Callable) -> Iterator[list[tuple]]:
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


@torch.inference_mode()
def _find(model: VisionModel) -> dict[str, list[Site]]:
    named = dict(model.module.named_modules())
    owner = {path: named[path.rpartition(".")[0]] for path in named if path}
    candidates: dict[str, str] = {}  # path: role
    width: dict[str, int] = {}  # units expected at a path, which tells NHWC from NCHW
    for path, module in named.items():
        name = path.rpartition(".")[2]
        if isinstance(module, (Mlp, GlobalResponseNormMlp)):  # the second is ConvNeXt V2's, no subclass of the first
            candidates[f"{path}.act"] = "mlp"
            width[f"{path}.act"] = module.fc1.weight.shape[0]
            block = path.rpartition(".")[0]
            if block and not isinstance(named[block], (nn.Sequential, nn.ModuleList)):
                candidates.setdefault(block, "residual")
                width[block] = module.fc2.weight.shape[0]
        elif name in _PROJECTIONS and isinstance(module, nn.Linear) and hasattr(owner[path], "proj"):
            candidates[path] = "projection"
            candidates.setdefault(path.rpartition(".")[0], "attention")
    if "mlp" not in candidates.values():
        candidates = {path: "channel" for path, module in named.items() if isinstance(module, _ACTIVATIONS)}
    size = model.image_size
    with model.lock, _watch({path: named[path] for path in candidates}, lambda path, call, output: output) as calls:
        model.module(torch.zeros(1, 3, size, size, device=model.device))
    found: dict[str, list[Site]] = {}
    for path, call, output in calls:
        if not isinstance(output, torch.Tensor):  # CoaT's parallel blocks return one tensor a scale
            continue
        role = candidates[path]
        for part, kind in enumerate(_PROJECTIONS[path.rpartition(".")[2]] if role == "projection" else [role]):
            parts = len(_PROJECTIONS[path.rpartition(".")[2]]) if role == "projection" else 1
            place = _describe(kind, len(found.get(kind, [])), path, call, output, (part, parts), width.get(path))
            if place:
                found.setdefault(kind, []).append(place)
    if not found:
        raise VitvizError(f"{model.name} has no units this kit can read: it looks for timm.layers.Mlp modules (transformers) "
                          f"or activation functions (CNNs), and {type(model.module).__name__} has neither.")
    return {kind: found[kind] for kind in KINDS if kind in found}


def _describe(kind, layer, path, call, output, part, width) -> Site | None:
    """The site an output belongs to, or None for one that does not hold tokens that lie on the image."""
    if output.dim() == 4 and (kind == "channel" or output.shape[-1] != width == output.shape[1]):
        return Site(kind, layer, output.shape[1], 0, tuple(output.shape[2:]), path, call, part, last=False)
    units = output.shape[-1] // part[1]
    if output.dim() == 4 and len(output) == 1:  # NHWC
        return Site(kind, layer, units, 0, tuple(output.shape[1:3]), path, call, part)
    if output.dim() != 3 or kind == "channel":
        return None if output.dim() < 3 else Site(kind, layer, units, 0, None, path, call, part)
    if len(output) > 1:  # windows: tokens in another order than the image's
        return Site(kind, layer, units, 0, None, path, call, part)
    side = math.isqrt(output.shape[1])
    prefix = output.shape[1] - side * side
    if prefix > _MOST_PREFIX:  # MLP-Mixer's token mixing: its units are not read at patches
        return None
    return Site(kind, layer, units, prefix, (side, side), path, call, part)
