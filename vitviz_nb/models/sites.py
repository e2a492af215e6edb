"""Sites: where activations of a model can be read, found by watching one forward pass.

Nothing here depends on a model family: MLP neurons are the outputs of the ``act`` of every ``timm.layers.Mlp``, in the order
of their calls; queries, keys and values are the outputs of their linear layers; a block is the module that owns an Mlp. Prefix
tokens (class, distillation, registers) are those by which the tokens outnumber a square, at each site.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from numbers import Integral

import torch
from timm.layers import GELU, GELUTanh, GlobalResponseNormMlp, Mlp, QuickGELU
from torch import nn

from ..utils import validate
from ..utils.errors import VitvizError, nearest
from .hooks import watch
from .vision_model import VisionModel

KINDS = {  # the order is part of every picture's random stream
    "mlp": "hidden neurons of the MLP, after the activation function",
    "query": "query projection, heads concatenated",
    "key": "key projection, heads concatenated",
    "value": "value projection, heads concatenated",
    "attention": "output of the attention layer, as it is added to the residual stream",
    "residual": "residual stream after the block",
    "channel": "channels of a CNN, after each activation function",
}
# Query, key and value projections by timm's names: what each equal share of their output is.
_PROJECTIONS = {
    "qkv": ("query", "key", "value"), "qk": ("query", "key"), "kv": ("key", "value"), "q": ("query",), "k": ("key",),
    "v": ("value",), "q_proj": ("query",), "k_proj": ("key",), "v_proj": ("value",),
}
_MOST_PREFIX = 8  # class, distillation and up to a handful of register tokens
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.PReLU, nn.Tanh)
# Activation functions that act on each unit alone, and on all in the same way.
ELEMENTWISE = {*_ACTIVATIONS, GELU, GELUTanh, QuickGELU} - {nn.PReLU}


@dataclass(frozen=True)
class Site:
    """One address at which activations can be read.

    Attributes:
        kind, layer: its address; ``layer`` counts from 0 in forward order within the kind.
        units: number of scalars that can be read: neurons, channels or dimensions.
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


def find_sites(model: VisionModel) -> dict[str, list[Site]]:
    """Every site of ``model`` by kind, each list in forward order; kinds the model lacks are absent. Its own kind comes first."""
    if not isinstance(model, VisionModel):
        raise VitvizError(f"A model comes from vv.load(name) or vv.wrap(module), got a {type(model).__name__}.")
    return model.remember(("sites", model.image_size), lambda: _find(model), weights=False)


def find_site(model: VisionModel, layer: int = -1, kind: str | None = None) -> Site:
    """The site at an address.

    Args:
        layer: counted from 0 in forward order within the kind; negative ones from the end, as in Python.
        kind: one of ``KINDS``; None for the model's own: "mlp" where it has MLPs, else "channel".

    Raises:
        VitvizError: a kind the model lacks, or a layer out of range.
    """
    by_kind = find_sites(model)
    if kind is not None and (not isinstance(kind, str) or kind not in by_kind):
        hint = nearest(kind, KINDS) if isinstance(kind, str) and kind not in KINDS else ""
        raise VitvizError(f"{model.name} has no sites of kind {validate.shown(kind)}; it has {', '.join(by_kind)}.{hint}")
    kind = kind or next(iter(by_kind))
    layers, number = by_kind[kind], validate.scalar(layer)
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise VitvizError(f"A layer is a whole number, 0 to {len(layers) - 1}, got {validate.shown(layer)}.")
    if not -len(layers) <= number < len(layers):
        raise VitvizError(f"{model.name} has no {kind} layer {validate.shown(number)}; its layers are 0 to {len(layers) - 1} "
                          f"(or -1 for the last).")
    return layers[number]


def check_neurons(site: Site, neurons) -> list[int]:
    """The neurons as a list of ints; VitvizError if one is out of range, named twice, or there is none.

    Args:
        neurons: a whole number, or a range, list, tensor or array of them.
    """
    neurons, allowed = validate.scalar(neurons), f"The {site} has neurons 0 to {site.units - 1}"
    try:
        several = isinstance(neurons, Iterable) and not isinstance(neurons, (str, bytes, dict))
        # One more than there are is enough to be refused, however many are named.
        numbers = [validate.scalar(n) for n in (islice(neurons, site.units + 1) if several else [neurons])]
    except Exception:  # an object whose iteration fails
        numbers = [None]
    if any(isinstance(n, bool) or not isinstance(n, Integral) for n in numbers):
        raise VitvizError(f"{allowed}; they are named by whole numbers, got {validate.shown(neurons)}.")
    numbers = [int(n) for n in numbers]
    outside = [n for n in numbers if not 0 <= n < site.units]
    wrong = (f"neuron {validate.shown(outside[0])} is out of range" if outside else "none was named" if not numbers else
             "the same neuron twice" if len(set(numbers)) < len(numbers) else "")
    if wrong:
        raise VitvizError(f"{allowed}; {wrong}.")
    return numbers


@torch.inference_mode()
def _find(model: VisionModel) -> dict[str, list[Site]]:
    named = dict(model.module.named_modules())
    candidates: dict[str, str] = {}  # path: role
    width: dict[str, int] = {}  # units expected at a path, which tells NHWC from NCHW
    for path, module in named.items():
        parent, _, name = path.rpartition(".")
        if isinstance(module, (Mlp, GlobalResponseNormMlp)):  # the second is ConvNeXt V2's, no subclass of the first
            candidates[f"{path}.act"] = "mlp"
            width[f"{path}.act"] = module.fc1.weight.shape[0]
            if parent and not isinstance(named[parent], (nn.Sequential, nn.ModuleList)):
                candidates.setdefault(parent, "residual")
                width[parent] = module.fc2.weight.shape[0]
        elif name in _PROJECTIONS and isinstance(module, nn.Linear) and hasattr(named[parent], "proj"):
            candidates[path] = "projection"
            candidates.setdefault(parent, "attention")
    if "mlp" not in candidates.values():
        candidates = {path: "channel" for path, module in named.items() if isinstance(module, _ACTIVATIONS)}
    size = model.image_size
    with model.lock, watch({path: named[path] for path in candidates}, lambda path, call, output: output) as calls:
        model.forward(torch.zeros(1, 3, size, size, device=model.device))
    sites: dict[str, list[Site]] = {}
    for path, call, output in calls:
        if not isinstance(output, torch.Tensor):  # CoaT's parallel blocks return one tensor a scale
            continue
        kinds = _PROJECTIONS[path.rpartition(".")[2]] if candidates[path] == "projection" else (candidates[path],)
        for part, kind in enumerate(kinds):
            site = _describe(kind, len(sites.get(kind, [])), path, call, output, (part, len(kinds)), width.get(path))
            if site:
                sites.setdefault(kind, []).append(site)
    if not sites:
        raise VitvizError(f"{model.name} has no neurons this kit can read: it looks for timm.layers.Mlp modules (transformers) "
                          f"or activation functions (CNNs), and {type(model.module).__name__} has neither.")
    return {kind: sites[kind] for kind in KINDS if kind in sites}


def _describe(kind, layer, path, call, output, part, width) -> Site | None:
    """The site an output belongs to, or None for one that does not hold tokens that lie on the image."""
    if output.dim() < 3:
        return None
    if output.dim() == 4 and (kind == "channel" or output.shape[-1] != width == output.shape[1]):  # NCHW
        return Site(kind, layer, output.shape[1], 0, tuple(output.shape[2:]), path, call, part, last=False)
    prefix, grid = 0, None  # windows have none: their tokens are in another order than the image's
    if output.dim() == 4 and len(output) == 1:  # NHWC
        grid = tuple(output.shape[1:3])
    elif output.dim() == 3 and len(output) == 1 and kind != "channel":
        side = math.isqrt(output.shape[1])
        prefix, grid = output.shape[1] - side * side, (side, side)
    if prefix > _MOST_PREFIX:  # MLP-Mixer's token mixing: its units are not read at patches
        return None
    return Site(kind, layer, output.shape[-1] // part[1], prefix, grid, path, call, part)
