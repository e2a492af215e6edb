"""Reading activations at sites: one forward pass, under the model's lock."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import torch
from timm.layers import GlobalResponseNormMlp, Mlp
from torch import nn

from ..utils import validate
from ..utils.errors import VitvizError
from .fingerprint import changes
from .hooks import Stop, hooked, watch
from .sites import ELEMENTWISE, Site, find_site, find_sites
from .vision_model import VisionModel, check_finite


def tokens(model: VisionModel, site: Site, inputs: torch.Tensor, leak: float = 0.0) -> torch.Tensor:
    """Activations at a site: (N, patch tokens, units) of *normalized* inputs (N, 3, H, W); gradients flow.

    With ``leak``, that share of the activation function's input is added to its output (see ``Recipe.leak``); sites that are
    no activation function's output ignore it. With ``site.own`` there is one unit, that of input n being ``site.own[n]``.
    The forward pass ends at the site, and the hooks are gone when this returns, however it returns.
    """
    outputs, before, calls = [], [], 0
    leak = leak if site.kind in ("mlp", "channel") else 0.0

    def is_the_sites_call() -> bool:
        nonlocal calls
        calls += 1
        return calls == site.call + 1

    def keep_input(path, module, arguments):
        before[:] = [arguments[0].clone()]  # some activation functions work in place

    def read(path, module, arguments, output):
        if is_the_sites_call():
            outputs.append(output + leak * before[0] if leak else output)
            raise Stop

    def read_own(path, fc1, arguments):  # all hidden units of the last layer needed cost as much as a third of a block
        if is_the_sites_call():
            # Not as a product of matrices: those with a vector are slow, on a card and on a CPU.
            own = arguments[0].reshape(len(inputs), -1, arguments[0].shape[-1]) * fc1.weight[site.own][:, None]
            own = own.sum(-1, keepdim=True)
            if fc1.bias is not None:
                own = own + fc1.bias[site.own][:, None, None]
            outputs.append(mlp.act(own.clone()) + leak * own if leak else mlp.act(own))
            raise Stop

    with model.lock:
        mlp = _separable_mlp(model, site)
        hooks = (hooked({site.path: mlp.fc1}, before=read_own) if mlp else
                 hooked({site.path: model.module.get_submodule(site.path)}, read, keep_input if leak else None))
        with hooks, suppress(Stop):
            model.forward(inputs)
    if not outputs:
        raise VitvizError(f"{site.path} of {model.name} was called {calls} times, not {site.call + 1} as when its sites were "
                          f"found: the model changed since; load it again.")
    read_tokens = _patch_tokens(site, outputs[0], len(inputs))
    if site.own is None or mlp:
        return read_tokens
    return read_tokens.gather(2, site.own[:, None, None].expand(-1, read_tokens.shape[1], 1))


def _patch_tokens(site: Site, output: torch.Tensor, n: int) -> torch.Tensor:
    if not site.last:
        return output.flatten(2).transpose(1, 2)
    # Windows and NHWC maps fold into one token axis: windows of an image follow each other in the batch.
    output = output.reshape(n, -1, output.shape[-1])[:, site.prefix :]
    return output.chunk(site.part[1], -1)[site.part[0]]


def _separable_mlp(model: VisionModel, site: Site) -> nn.Module | None:
    """The MLP of a site with ``own`` units, if each can be computed without the others.

    Not where the activation function mixes units, nor where hooks, such as a doctored network's, expect all of them.
    """
    mlp = model.module.get_submodule(site.path.rpartition(".")[0])
    if site.own is None or site.kind != "mlp" or type(mlp) not in (Mlp, GlobalResponseNormMlp) or type(mlp.fc1) is not nn.Linear:
        return None
    return mlp if type(mlp.act) in ELEMENTWISE and changes(mlp.fc1) == changes(mlp.act) == [] else None


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
        prefix: True to have the ``site.prefix`` class tokens, too, in front of the patch tokens.

    Raises:
        VitvizError: images of another shape or range; activations that are NaN or infinite.
    """
    validate.images(f"Images for {model.name}", images, (3, model.image_size, model.image_size))

    def keep_all(path, call, output):
        here = {site: replace(site, prefix=0) if prefix else site for site in sites if (site.path, site.call) == (path, call)}
        return {site: keep(site, _patch_tokens(whole, output, len(images)).float()).cpu() for site, whole in here.items()}

    with model.lock, watch({site.path: model.module.get_submodule(site.path) for site in sites}, keep_all) as calls:
        model.forward(model.normalize(images.to(model.device)))
    values = {site: value for _, _, here in calls for site, value in here.items()}
    for site, value in values.items():
        if value.is_floating_point() and not value.isfinite().all():
            check_finite(model.module, model.name)
            raise VitvizError(f"The {site} of {model.name} has NaN or infinite activations for these images.")
    return [values[site] for site in sites]
