"""Reading activations at sites: one forward pass, under the model's lock."""

from collections.abc import Callable
from contextlib import ExitStack, suppress

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..utils import validate
from ..utils.errors import VitvizError
from .fingerprint import changes
from .hooks import Stop, hooked, watch
from .sites import ELEMENTWISE, Site, find_site, find_sites
from .vision_model import VisionModel, check_finite


def tokens(model: VisionModel, site: Site, inputs: torch.Tensor, leak: float = 0.0) -> torch.Tensor:
    """Activations at a site: (N, patch tokens, units) of *normalized* inputs (N, 3, H, W); gradients flow.

    With ``leak``, that share of the activation function's input is added to its output (see ``Recipe.leak``); it is ignored where
    the units are not what one activation function returns (gates, norms, logits). With ``site.own`` there is one unit, that of
    input n being ``site.own[n]``.
    The forward pass ends at the site, and the hooks are gone when this returns, however it returns.
    """
    outputs, before, calls, leaky, act = [], [], 0, False, None

    def is_the_sites_call() -> bool:
        nonlocal calls
        calls += 1
        return calls == site.call + 1

    def read(path, module, arguments, output=None):
        if is_the_sites_call():
            found = _read(model, site, arguments, output, len(inputs))
            outputs.append(found + leak * _patch_tokens(site, before[0], len(inputs)) if leaky else found)
            raise Stop

    def keep(path, module, arguments, output=None):
        before[:] = [(arguments[0] if output is None else output).clone()]  # some activation functions work in place

    def read_own(path, opening, arguments):  # all hidden units of the last layer needed cost as much as a third of a block
        if is_the_sites_call():
            # Not as a product of matrices: those with a vector are slow, on a card and on a CPU.
            own = arguments[0].reshape(len(inputs), -1, arguments[0].shape[-1]) * opening.weight[site.own][:, None]
            own = own.sum(-1, keepdim=True)
            if opening.bias is not None:
                own = own + opening.bias[site.own][:, None, None]
            outputs.append(_patch_tokens(site, act(own.clone()) + leak * own if leak else act(own), len(inputs)))
            raise Stop

    with model.lock, ExitStack() as hooks:
        module = model.module.get_submodule(site.path)
        opening, act = _separable(model, site)  # under the lock, else another thread's hooks of this kit count as changes
        leaky = bool(leak and not act and (site.act or site.kind == "channel" and not list(module.children())))
        if act:
            hooks.enter_context(hooked({site.act[0]: opening}, before=read_own))
        else:
            if leaky and site.given:
                hooks.enter_context(hooked({site.act[0]: model.module.get_submodule(site.act[0])}, keep))
            hooks.enter_context(hooked({site.path: module}, None, read) if site.given else
                                hooked({site.path: module}, read, keep if leaky else None))
        with suppress(Stop):
            model.forward(inputs)
    if not outputs:
        raise VitvizError(f"{site.path} of {model.name} was called {calls} times, not {site.call + 1} as when its sites were "
                          f"found: the model changed since; load it again.")
    if site.own is None or act:
        return outputs[0]
    return outputs[0].gather(2, site.own[:, None, None].expand(-1, outputs[0].shape[1], 1))


def _read(model: VisionModel, site: Site, arguments: tuple, output, n: int, prefix: bool = False) -> torch.Tensor:
    """Tokens (n, tokens, units) of a call of the site's module."""
    if site.kind == "logit":
        return model.logits(output)[:, None]
    whole = arguments[0] if site.given else next(leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))
    return _patch_tokens(site, whole, n, prefix)


def _patch_tokens(site: Site, whole: torch.Tensor, n: int, prefix: bool = False) -> torch.Tensor:
    # Windows and NHWC maps fold into one token axis: windows of an image follow each other in the batch.
    found = whole.reshape(n, -1, whole.shape[-1]) if site.last else whole.flatten(2).transpose(1, 2)
    if site.kind == "cls":
        return found[:, :1]
    before, patches = found[:, :site.prefix], found[:, site.prefix:]
    if site.order is not None:
        patches = patches[:, site.order.to(patches.device)]
    return (torch.cat([before, patches], 1) if prefix else patches).chunk(site.part[1], -1)[site.part[0]]


def _separable(model: VisionModel, site: Site) -> tuple[nn.Module | None, nn.Module | None]:
    """The linear layer and activation function of a site with ``own`` units, if each unit can be made without the others.

    Not where the activation function mixes units, nor where hooks, such as a fooling circuit's, expect all of them.
    """
    if site.own is None or not site.act:
        return None, None
    opening, act = (model.module.get_submodule(path) for path in site.act)
    closing = model.module.get_submodule(site.path)
    plain = type(opening) is nn.Linear and type(act) in ELEMENTWISE
    return (opening, act) if plain and changes(opening) == changes(act) == changes(closing) == [] else (None, None)


def activations(model: VisionModel, kind: str | None, images: torch.Tensor) -> list[torch.Tensor]:
    """Mean over patch tokens at every site of a kind, from one forward pass: per layer float32 (N, units), on the CPU.

    Args:
        kind: one of ``sites.KINDS`` that the model has; None for its own.
        images: RGB in [0, 1], (N, 3, image_size, image_size).
    """
    return each_layer(model, kind, images, lambda site, tokens: tokens.mean(1))


def each_layer(model: VisionModel, kind: str | None, images: torch.Tensor, keep: Callable[[Site, torch.Tensor], torch.Tensor],
               prefix: bool = False) -> list[torch.Tensor]:
    """``keep(site, tokens)`` at every site of a kind, from one forward pass: per layer, on the CPU (see ``at_sites``)."""
    return at_sites(model, find_sites(model)[find_site(model, kind=kind).kind], images, keep, prefix)


@torch.inference_mode()
def at_sites(model: VisionModel, sites: list[Site], images: torch.Tensor, keep: Callable[[Site, torch.Tensor], torch.Tensor],
             prefix: bool = False) -> list[torch.Tensor]:
    """``keep(site, tokens)`` at sites of any kinds, from one forward pass: one tensor a site, on the CPU.

    Args:
        images: RGB in [0, 1], (N, 3, image_size, image_size).
        keep: what to keep of the tokens (N, patch tokens, units), float32, on which a later layer may work in place.
        prefix: True to have the ``site.prefix`` CLS tokens, too, in front of the patch tokens.

    Raises:
        VitvizError: images of another shape or range; activations that are NaN or infinite.
    """
    validate.images(f"Images for {model.name}", images, (3, model.image_size, model.image_size))

    def keep_all(path, call, arguments, output):
        return {site: keep(site, _read(model, site, arguments, output, len(images), prefix).float()).cpu()
                for site in sites if (site.path, site.call) == (path, call)}

    with model.lock, watch({site.path: model.module.get_submodule(site.path) for site in sites}, keep_all) as calls:
        model.forward(model.normalize(images.to(model.device)))
    values = {site: value for _, _, here in calls for site, value in here.items()}
    for site, value in values.items():
        if value.is_floating_point() and not value.isfinite().all():
            check_finite(model.module, model.name)
            raise VitvizError(f"The {site} of {model.name} has NaN or infinite activations for these images.")
    return [values[site] for site in sites]
