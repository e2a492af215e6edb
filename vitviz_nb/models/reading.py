"""Reading activations at sites: one forward pass, under the model's lock."""

from collections.abc import Callable
from dataclasses import replace

import torch
from timm.layers import GlobalResponseNormMlp, Mlp
from torch import nn

from ..utils.errors import VitvizError
from .hooks import watch
from .sites import _ONE_BY_ONE, Site, find_sites
from .vision_model import VisionModel


class _Stop(Exception):
    """Ends a forward pass once the site has been read."""


def tokens(model: VisionModel, site: Site, inputs: torch.Tensor, leak: float = 0.0) -> torch.Tensor:
    """Activations at a site: (N, patch tokens, units) of *normalized* inputs (N, 3, H, W); gradients flow.

    With ``leak``, that share of the activation function's input is added to its output (see ``Recipe.leak``); sites that are
    no activation function's output ignore it. With ``place.own`` the answer has one unit, input n's being ``place.own[n]``.
    The forward pass ends at the site, and the hooks are gone when this returns, however it returns.
    """
    found, before, calls = [], [], 0
    leak = leak if site.kind in ("mlp", "channel") else 0.0
    hidden, act = (None, None) if site.own is None else _hidden(model, site)

    def keep(module, arguments):
        before[:] = [arguments[0].clone()]  # some activation functions work in place

    def read(module, arguments, output):
        nonlocal calls
        calls += 1
        if calls == site.call + 1:
            found.append(output + leak * before[0] if leak else output)
            raise _Stop

    def read_own(module, arguments):  # all hidden units of the last layer needed cost as much as a third of a block
        nonlocal calls
        calls += 1
        if calls == site.call + 1:
            # Not as a product of matrices: those with a vector are slow, on a card and on a CPU.
            into = arguments[0].reshape(len(inputs), -1, arguments[0].shape[-1]) * hidden.weight[site.own][:, None]
            into = into.sum(-1, keepdim=True)
            if hidden.bias is not None:
                into = into + hidden.bias[site.own][:, None, None]
            found.append(act(into.clone()) + leak * into if leak else act(into))
            raise _Stop

    with model.lock:
        module = model.module.get_submodule(site.path)
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
        raise VitvizError(f"{site.path} of {model.name} was called {calls} times, not {site.call + 1} as when its sites were "
                          f"found: the model changed since; load it again.")
    read_there = _patch_tokens(site, found[0], len(inputs))
    if site.own is None or hidden:
        return read_there
    return read_there.gather(2, site.own[:, None, None].expand(-1, read_there.shape[1], 1))


def _patch_tokens(site: Site, output: torch.Tensor, n: int) -> torch.Tensor:
    if not site.last:
        return output.flatten(2).transpose(1, 2)
    # Windows and NHWC maps fold into one token axis: windows of an image follow each other in the batch.
    output = output.reshape(n, -1, output.shape[-1])[:, site.prefix :]
    return output.chunk(site.part[1], -1)[site.part[0]]


def _hidden(model: VisionModel, site: Site) -> tuple[nn.Linear, nn.Module] | tuple[None, None]:
    """The layer that makes a site's hidden units and the function applied to each alone; (None, None) where it is not so.

    Nor where either has hooks, such as a doctored network's: they expect, and may change, all units.
    """
    mlp = model.module.get_submodule(site.path.rpartition(".")[0])
    if site.kind != "mlp" or type(mlp) not in (Mlp, GlobalResponseNormMlp) or type(mlp.fc1) is not nn.Linear:
        return None, None
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in (mlp.fc1, mlp.act))
    return (None, None) if hooked or type(mlp.act) not in _ONE_BY_ONE else (mlp.fc1, mlp.act)


def activations(model: VisionModel, kind: str, images: torch.Tensor) -> list[torch.Tensor]:
    """Mean over patch tokens at every site of a kind, from one forward pass: per layer float32 (N, units), on the CPU.

    Args:
        images: RGB in [0, 1], (N, 3, image_size, image_size).
    """
    return each_layer(model, kind, images, lambda site, found: found.mean(1))


def each_layer(model: VisionModel, kind: str, images: torch.Tensor, keep: Callable[[Site, torch.Tensor], torch.Tensor],
               prefix: bool = False) -> list[torch.Tensor]:
    """``keep(site, tokens)`` at every site of a kind, from one forward pass: per layer, on the CPU (see ``at_sites``)."""
    return at_sites(model, find_sites(model)[kind], images, keep, prefix)


@torch.inference_mode()
def at_sites(model: VisionModel, sites: list[Site], images: torch.Tensor, keep: Callable[[Site, torch.Tensor], torch.Tensor],
             prefix: bool = False) -> list[torch.Tensor]:
    """``keep(site, tokens)`` at sites of any kinds, from one forward pass: one tensor a site, on the CPU.

    Args:
        images: RGB in [0, 1], (N, 3, image_size, image_size).
        keep: what to keep of the tokens (N, patch tokens, units), float32: all sites' tokens together fill a memory, and a
            later layer may work in place on this one's.
        prefix: True to have the ``site.prefix`` class tokens, too, in front of the patch tokens.
    """
    def found(path, call, output):
        here = [p for p in sites if (p.path, p.call) == (path, call)]
        cut = [replace(p, prefix=0) if prefix else p for p in here]
        return {p: keep(p, _patch_tokens(c, output, len(images)).float()).cpu() for p, c in zip(here, cut, strict=True)}

    with model.lock, watch({p.path: model.module.get_submodule(p.path) for p in sites}, found) as calls:
        model.module(model.normalize(images.to(model.device)))
    kept = {site: values for _, _, here in calls for site, values in here.items()}
    return [kept[site] for site in sites]
