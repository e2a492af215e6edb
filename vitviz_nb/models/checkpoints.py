"""Weights of one's own for a timm model: what training code wraps around them is taken off, and none is left random."""

import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timm.models import load_state_dict
from torch import nn

from ..utils.errors import VitvizError, first_line

# Entries of a file that hold a network, averages first (timm itself knows state_dict_ema, model_ema, state_dict and model).
_ENTRIES = ("ema_state_dict", "ema", "teacher", "model_state_dict", "state_dict", "model", "net", "network", "weights", "module")
# What training leaves beside a network: masks, position indices, averages, other networks, self-supervised heads, losses.
_LEFT_OVER = re.compile(
    r"(^|\.)(mask_token|relative_position_index|relative_coords_table|attn_mask|position_ids|n_averaged|total_ops|total_params)$"
    r"|(^|[._])(student|teacher|ema|momentum|dino|ibot|decoder|criterion|loss)\w*\.|^head\.(mlp|last_layer)\.|decoder_pos_embed$")


def load_checkpoint(name: str, path: Path, make: Callable[..., nn.Module]) -> nn.Module:
    """The timm model ``name`` with the weights of a file: safetensors, or what ``torch.save`` wrote, without running any of it.

    They may lie under an entry (``state_dict``, ``model``, ``net``, an average), and their names behind a prefix (``model.``,
    ``backbone.``, ``module.``). timm converts original checkpoints, and resamples position embeddings to the model's size.

    Args:
        make: the model with random weights; ``make(num_classes=…)`` with that many classes.

    Raises:
        VitvizError: no such file; none that can be read safely; weights that are missing, of another shape, or left over, but
            for masks, losses and self-supervised heads.
    """
    module, problem = make(), ""
    weights, others = _network(_read(path), module, path)
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", lambda weights, module: weights)
    try:
        converted = convert(dict(weights), module)
    except Exception as error:  # of a file of another network, in any way there is
        converted, problem = {}, f"{type(error).__name__}: {error}"
    classifier = module.pretrained_cfg.get("classifier") or "head"
    head = converted.get(f"{classifier if isinstance(classifier, str) else classifier[0]}.weight", ())
    if len(head) != module.num_classes:
        module = make(num_classes=len(head))
    problem = problem or _misfit(module.state_dict(), weights, converted)
    if not problem:
        lacks, extra = module.load_state_dict(converted, strict=False)
        extra = [key for key in [*extra, *others] if not _LEFT_OVER.search(key)]
        problem = (f"it lacks {_some(lacks)}" + (f", and has {_some(extra)}" if extra else "") if lacks else
                   f"it has {_some(extra)}, for which {name} has no place" if extra else "")
    if problem:
        raise VitvizError(f"{path} does not hold weights of {name}: {problem}. Give the timm name that it was trained with; or "
                          f"build the network as it was trained, load the file into it, and take vv.wrap(module).")
    return module


def _read(path: Path) -> dict:
    """The weights in a file, out of the entries they lie under."""
    if not path.is_file():
        raise VitvizError(f"There is no checkpoint {path}; name a .safetensors, .pth or .bin file.")
    numbers = [np.dtype, _SCALAR, _scalar, *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"]}]
    try:
        with torch.serialization.safe_globals(numbers):  # accuracies and the like, which hold nothing that runs
            content = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # a file of another kind fails in any way there is
        raise VitvizError(f"{path} is no checkpoint that can be read safely ({first_line(error)}); save its weights "
                          f"alone: safetensors.torch.save_file(model.state_dict(), path).") from None
    while isinstance(content, dict) and not any(isinstance(value, torch.Tensor) for value in content.values()):
        inside = [entry for entry in _ENTRIES if isinstance(content.get(entry), dict)]
        if not inside:
            raise VitvizError(f"{path} holds no weights: its entries are {_some(list(content))}. Save model.state_dict().")
        content = content[inside[0]]
    return {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}


def _scalar(*arguments):
    return _SCALAR(*arguments)


_SCALAR = np.float64(0).__reduce__()[0]
_scalar.__module__, _scalar.__name__, _scalar.__qualname__ = "numpy.core.multiarray", "scalar", "scalar"  # as NumPy 1 wrote it


def _network(weights: dict, module: nn.Module, path: Path) -> tuple[dict, list[str]]:
    """The weights behind the prefix that most names of ``module`` are found behind, and the names of all others."""
    names, found = set(module.state_dict()), Counter()
    for key in weights:
        parts = key.split(".")
        found.update(".".join([*parts[:i], ""]) for i in range(len(parts)) if ".".join(parts[i:]) in names)
    rivals = [prefix for prefix, count in found.items() if count == max(found.values())] or [""]
    chosen = [prefix for prefix in rivals if re.search("ema|teacher", prefix)] or rivals
    if len(chosen) > 1:
        raise VitvizError(f"{path} holds several networks, behind {_some(chosen)}; save the weights of one of them.")
    return ({key.removeprefix(chosen[0]): value for key, value in weights.items() if key.startswith(chosen[0])},
            [key for key in weights if not key.startswith(tuple(rivals))])


def _misfit(own: dict, weights: dict, converted: dict) -> str:
    """Which weight has another shape than it should, in words, or "": before timm's conversion, too, which resamples patches."""
    for key, tensor in own.items():
        before, after = (each[key].shape if key in each else tensor.shape for each in (weights, converted))
        if after == tensor.shape and (len(before) != 4 or "pos" in key or before == tensor.shape):
            continue
        before, own_shape = (before if key in weights else after), tensor.shape
        kind = (f"of {before[1]} channels, not 3" if len(before) == 4 and own_shape[1] == 3 != before[1] else
                "of a size that timm cannot resample to another" if "pos" in key else "for another architecture or patch size")
        return f"it is {kind} ({key} has shape {tuple(before)}, not {tuple(own_shape)})"
    return ""


def _some(names: list[str]) -> str:
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"
