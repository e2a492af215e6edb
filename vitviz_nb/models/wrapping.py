"""Any network as a model: ``wrap``, and what a module says of itself."""

from collections import Counter
from contextlib import suppress
from functools import cache
from operator import attrgetter
from typing import Any

import torch
from timm.data import ImageNetInfo, resolve_model_data_config
from torch import nn

from ..utils import validate
from ..utils.errors import VitvizError
from .vision_model import VisionModel

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def wrap(module: nn.Module, image_size: int | None = None, mean=None, std=None, class_names: list[str] | None = None,
         name: str | None = None) -> VisionModel:
    """A model of any ``nn.Module`` that takes normalized RGB images: of Hugging Face, torchvision, open_clip, timm, your own.

    ``model(images)`` are its logits (N, classes), or what a network without classes gives: its image embedding, pooled output
    or last hidden state, the first there is. Its weights are frozen in place, it is put into eval mode, and timm's fused
    attention is written out on a CPU; nothing else of it changes. Of a ``torch.compile``d or ``DataParallel`` module, the
    module inside is taken; gradient checkpointing is off during the kit's own passes.

    Args:
        image_size: side of its square input, px; by default what the module says of itself (timm, Hugging Face, open_clip).
        mean, std: per-channel normalization of RGB in [0, 1]; by default what the module says (timm, open_clip).
        class_names: one for each logit; by default Hugging Face's ``id2label``, or timm's.
        name: for captions and cache keys; by default timm's name of the architecture, or the class's.

    Raises:
        VitvizError: no module; size or normalization neither said nor given; a network that does not run on such images, or
            cannot be read: half precision, quantized, compiled in part, with LoRA adapters.
    """
    if not isinstance(module, nn.Module):
        raise VitvizError(f"vv.wrap takes a torch.nn.Module, got {validate.shown(module)}; a model that has a name comes from "
                          f"vv.load(name).")
    while (inside := getattr(module, "_orig_mod", module.module if isinstance(module, _PARALLEL) else None)) is not None:
        module = inside
    kind = type(module).__name__
    if reason := _unreadable(module):
        raise VitvizError(f"A {kind} like this cannot be read: {reason}.")
    said, given = said_of(module), {"image_size": image_size, "mean": mean, "std": std, "class_names": class_names, "name": name}
    known = {"name": kind} | said | {what: value for what, value in given.items() if value is not None}
    if unknown := [what for what in ("image_size", "mean", "std") if what not in known]:
        raise VitvizError(f"A {kind} does not say its {', '.join(unknown)}: give vv.wrap(module, image_size=…, mean=…, std=…). "
                          "torchvision's weights take ImageNet's mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225); a "
                          "Hugging Face processor has image_mean and image_std.")
    model = VisionModel(module, **known | {"class_names": class_names})
    logits, names = check_runs(model, said.get("image_size")), said.get("class_names")
    if class_names is None and names and getattr(logits, "shape", ())[1:] == (len(names),):  # else a head was cut off
        model.class_names = names
    return model


def said_of(module: nn.Module) -> dict[str, Any]:
    """What a module says of its input and classes, as arguments of ``VisionModel``; what it does not say is absent.

    Raises:
        VitvizError: its input is not square.
    """
    said, config = {}, getattr(module, "pretrained_cfg", None)
    if isinstance(config, dict):  # timm's
        said = resolve_model_data_config(module)
        said |= {"image_size": said.pop("input_size")[-2:], "name": config.get("architecture") or type(module).__name__,
                 "license": config.get("license") or "see the model's page", "class_names": None}
        names, classes = config.get("label_names"), getattr(module, "num_classes", 0)
        if names and len(names) == classes or classes == 1000:
            said["class_names"] = list(map(str, names or imagenet_names()))
    elif isinstance(config := getattr(module, "preprocess_cfg", None), dict):  # open_clip's
        said = {key: config[key] for key in ("mean", "std", "interpolation")} | {"image_size": config["size"]}
    elif isinstance(labels := _says(module, "config.id2label"), dict):  # Hugging Face's
        names = [str(labels[i]) for i in sorted(labels)]
        said = {} if names[:1] == ["LABEL_0"] else {"class_names": names}
    size = _says(module, "patch_embed.img_size", "image_size", "config.image_size") or said.pop("image_size", None)
    if size is not None:
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        if height != width:
            raise VitvizError(f"This {type(module).__name__} takes images of {height} x {width} px; the kit shows square ones. "
                              f"Build it for a square input.")
        said["image_size"] = width
    return said


def check_runs(model: VisionModel, usual: int | None = None) -> torch.Tensor:
    """The logits of a gray image, from one pass; VitvizError if the network does not take RGB images of this size.

    Args:
        usual: a size that is not questioned; some networks have a border that is no whole patch, which they do not see.
    """
    size, patch = model.image_size, _says(model.module, "patch_embed.patch_size", "patch_size", "config.patch_size")
    patch = patch[0] if isinstance(patch, (tuple, list)) else patch
    if size != usual and isinstance(patch, int) and size % patch:
        raise VitvizError(f"{model.name} has patches of {patch} px, which do not fill {size} px; give an image_size such as "
                          f"{max(size // patch, 1) * patch} or {(size // patch + 1) * patch}.")
    try:
        with torch.no_grad():
            return model(torch.full((1, 3, size, size), 0.5))
    except VitvizError as error:
        channels = next((part.in_channels for part in model.module.modules() if isinstance(part, nn.Conv2d)), 3)
        tower = next((name for name in ("visual", "vision_model") if _says(model.module, name) is not None), None)
        if "cannot be run" not in str(error) or channels == 3 and not tower:
            raise
        raise VitvizError(
            f"{error} Wrap its image tower alone: vv.wrap(module.{tower})." if channels == 3 else
            f"{model.name} takes images of {channels} channel(s), and the kit's are RGB: wrap nn.Sequential(layer, module), "
            f"whose layer makes {channels} of 3, as torchvision.transforms.Grayscale() makes 1.") from error


def _unreadable(module: nn.Module) -> str:
    """Why no gradient, or no neuron, of a network can be had, with the way out; or ""."""
    parts, weights = list(module.modules()), [*module.parameters(), *module.buffers()]
    if any(weight.is_meta or isinstance(weight, nn.parameter.UninitializedTensorMixin) for weight in weights):
        return "its weights are not there yet; load them, or show a lazy module an image, before"
    types = {str(weight.dtype).removeprefix("torch.") for weight in module.parameters()}
    if any(type(part).__module__.startswith("peft.") for part in parts):
        return "it has adapters of peft; wrap what module.merge_and_unload() returns"
    if any("quantized" in type(part).__module__ for part in parts) or types & {"int8", "uint8"}:
        return "its weights are quantized, which leaves no gradient; wrap it as it was before"
    if half := types & {"float16", "bfloat16"}:
        return f"its weights are {half.pop()}, too coarse for gradients of pixels; wrap module.float()"
    if any(hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) for part in parts):
        return "it is compiled in part; wrap it as it was before"
    return ""


def _says(module: nn.Module, *paths: str) -> Any:
    """The first of these attributes that the module has."""
    for path in paths:
        with suppress(AttributeError):
            if (value := attrgetter(path)(module)) is not None:
                return value
    return None


@cache
def imagenet_names() -> list[str]:
    """ImageNet's 1,000 classes in order, each by its first synonym, or by all where two share the first.

    Two classes have no other name than "crane"; their WordNet ids are added. No two names are equal, whatever the case.
    """
    info = ImageNetInfo("imagenet-1k")
    synonyms, ids = [info.index_to_description(i) for i in range(1000)], info.label_names()
    first = [text.split(",")[0] for text in synonyms]
    shared, same = (Counter(map(str.casefold, names)) for names in (first, synonyms))
    return [name if shared[name.casefold()] == 1 else text if same[text.casefold()] == 1 else f"{text} ({wordnet})"
            for name, text, wordnet in zip(first, synonyms, ids, strict=True)]
