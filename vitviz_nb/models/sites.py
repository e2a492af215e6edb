"""Sites: where activations of a model can be read, found by watching one forward pass.

Nothing here depends on a model family (see ``trace`` and ``positions``): a neuron of an MLP is an input of the linear layer, or
1x1 convolution, that closes the MLP. Attention pooling, class attention, token-mixing and relative-position MLPs are left out,
so the last layer is the trunk's.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from numbers import Integral

import torch
from timm.layers import GELU, GELUTanh, QuickGELU
from torch import nn

from ..utils import validate
from ..utils.errors import VitvizError, nearest
from .positions import places
from .vision_model import VisionModel

KINDS = {  # the order is part of every picture's random stream
    "mlp": "hidden neurons of the MLP, after the activation function",
    "query": "query projection, heads concatenated",
    "key": "key projection, heads concatenated",
    "value": "value projection, heads concatenated",
    "attention": "output of the attention layer, as it is added to the residual stream",
    "residual": "residual stream after the block",
    "channel": "channels of a CNN, after each activation function",
    "logit": "logits of the classes",
    "cls": "hidden neurons of the MLP, at the CLS token only",
}
# Activation functions that act on each unit alone, and on all in the same way.
ELEMENTWISE = {nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.Tanh, GELU, GELUTanh, QuickGELU}


@dataclass(frozen=True)
class Site:
    """One address at which activations can be read.

    Attributes:
        kind, layer: its address; ``layer`` counts from 0 in forward order within the kind.
        units: number of scalars that can be read: neurons, channels or dimensions.
        prefix: tokens before the patch tokens (0 for CNNs and windows).
        grid: (rows, columns) of the patch tokens, in raster order over the image; None where they are not in that order.
        path: the module's name in the network ("" is the network); ``call`` says which of its calls (CoaT calls one Mlp several
            times).
        part: (index, of how many) equal shares of the tensor that the units are.
        last: whether units are the last dimension of the tensor (False for NCHW).
        given: whether the tensor is what the module is given, as an MLP's closing layer its hidden units; else what it returns.
        act: paths of the linear layer and of the elementwise activation function that make the units; () for gates and others.
        why: why there is no grid.
        order: int64 (patch tokens,), the tensor's tokens in raster order, where they are in another.
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
    given: bool = False
    act: tuple[str, ...] = ()
    why: str = ""
    order: torch.Tensor | None = field(default=None, compare=False)
    own: torch.Tensor | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.kind} layer {self.layer}"


def find_sites(model: VisionModel) -> dict[str, list[Site]]:
    """Every site of ``model`` by kind, each list in forward order; kinds the model lacks are absent. Its own kind comes first."""
    if not isinstance(model, VisionModel):
        raise VitvizError(f"A model comes from vv.load(name) or vv.wrap(module), got a {type(model).__name__}.")
    return model.remember(("sites", model.image_size), lambda: _find(model), weights=False)


def find_site(model: VisionModel, layer: int | str = -1, kind: str | None = None) -> Site:
    """The site at an address.

    Args:
        layer: counted from 0 in forward order within the kind; negative ones from the end, as in Python. Or a module's path, such
            as "blocks.3" or "blocks.3.mlp.act".
        kind: one of ``KINDS``; None for the model's own: "mlp" where it has MLPs, else "channel".

    Raises:
        VitvizError: a kind the model lacks, or a layer out of range.
    """
    by_kind = find_sites(model)
    if kind is not None and (not isinstance(kind, str) or kind not in by_kind):
        hint = nearest(kind, KINDS) if isinstance(kind, str) and kind not in KINDS else ""
        raise VitvizError(f"{model.name} has no sites of kind {validate.shown(kind)}; it has {', '.join(by_kind)}.{hint}")
    if isinstance(layer, str):
        return _at_path(model, layer, [kind] if kind else list(by_kind))
    kind = kind or next(iter(by_kind))
    layers, number = by_kind[kind], validate.scalar(layer)
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise VitvizError(f"A layer is a whole number, 0 to {len(layers) - 1}, or a module's path such as {layers[-1].path!r}, "
                          f"got {validate.shown(layer)}.")
    if not -len(layers) <= number < len(layers):
        raise VitvizError(f"{model.name} has no {kind} layer {validate.shown(number)}; its layers are 0 to {len(layers) - 1} "
                          f"(or -1 for the last).")
    return layers[number]


def _at_path(model: VisionModel, path: str, kinds: list[str]) -> Site:
    """The one site at or below a module, of the first kind that has one there."""
    sites = find_sites(model)
    for kind in kinds:
        there = [site for site in sites[kind] if path in (site.path, *site.act) or f"{site.path}.".startswith(f"{path}.")]
        if len(there) == 1:
            return there[0]
        if there:
            raise VitvizError(f"There are {len(there)} {kind} layers in {path!r} of {model.name}, {there[0].layer} to "
                              f"{there[-1].layer}; name one by its number.")
    known = [site.path for kind in kinds for site in sites[kind]]
    raise VitvizError(f"{model.name} has no layer at {validate.shown(path)}; a layer is a number, such as -1, or the path of a "
                      f"module that holds one, such as {known[0]!r}.{nearest(path, known)}")


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


@torch.inference_mode(False)
@torch.no_grad()
def _find(model: VisionModel) -> dict[str, list[Site]]:
    with model.lock:
        found, output = places(model)
    sites: dict[str, list[Site]] = {}
    for each, place in found:
        units = each.shape[place.axis] // each.part[1]
        why = "" if place.grid else ("its tokens are in windows" if each.shape[0] > 1 else
                                     "no order of its tokens agrees with the changes that they show")
        layers = sites.setdefault(each.kind, [])
        site = Site(each.kind, len(layers), units, place.prefix, place.grid, each.path, each.call, each.part, place.axis == -1,
                    each.given, each.act if each.act and each.given else (), why, place.order)
        layers.append(site)
        if site.kind == "mlp" and place.prefix and getattr(model.module, "cls_token", True) is not None:
            sites.setdefault("cls", []).append(replace(site, kind="cls", layer=len(sites.get("cls", [])), prefix=0, grid=None,
                                                           why="the CLS token has no position"))
    classes = len(model.class_names) if model.text else _classes(model, output)
    if classes:
        sites["logit"] = [Site("logit", 0, classes, 0, None, "", 0, why="logits are of the whole image")]
    if not sites:
        returned = type(output).__name__ + (f" of shape {tuple(output.shape[1:])}" if isinstance(output, torch.Tensor) else "")
        raise VitvizError(f"{model.name} has no neurons this kit can read: in a forward pass no linear layer closed an MLP over "
                          f"tokens of the image, no module returned an activation function's output over it, and the network "
                          f"returns no logits, but a {returned}.")
    return {kind: sites[kind] for kind in KINDS if kind in sites}


def _classes(model: VisionModel, output) -> int:
    """The number of logits; 0 where the network returns features."""
    logits = getattr(output, "logits", output)
    features = getattr(model.module, "num_classes", None) == 0 or not isinstance(logits, torch.Tensor) or logits.dim() != 2
    return 0 if features else logits.shape[1]
