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
_INPUT = ("image_size", "mean", "std")


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
    while inside := getattr(module, "_orig_mod", module.module if isinstance(module, _PARALLEL) else None):
        module = inside
    if reason := _unreadable(module):
        raise VitvizError(f"A {type(module).__name__} like this cannot be read: {reason}.")
    said, given = said_of(module), {"image_size": image_size, "mean": mean, "std": std, "class_names": class_names, "name": name}
    given = {what: value for what, value in given.items() if value is not None}
    if unknown := [what for what in _INPUT if what not in said | given]:
        raise VitvizError(f"A {type(module).__name__} does not say its {', '.join(unknown)}: give vv.wrap(module, image_size=…, "
                          f"mean=…, std=…). torchvision's weights take ImageNet's mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, "
                          f"0.225); a Hugging Face processor has image_mean and image_std.")
    model = VisionModel(module, **{"name": type(module).__name__} | said | given)
    if class_names is None:  # what a module says of its classes holds for a head that may have been cut off
        said_names, model.class_names = model.class_names, None
    logits = check_runs(model, said.get("image_size"))
    if class_names is None and said_names and logits.shape[1:] == (len(said_names),):
        model.class_names = said_names
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
    """The logits of a gray image, from one pass.

    Args:
        usual: a size that is not questioned; some networks leave a border that is no whole patch unseen.

    Raises:
        VitvizError: the network does not run on RGB images of this size, or its patches do not fill them.
    """
    size, patch = model.image_size, _says(model.module, "patch_embed.patch_size", "patch_size", "config.patch_size")
    patch = patch[0] if isinstance(patch, (tuple, list)) else patch
    if size != usual and isinstance(patch, int) and size % patch:
        raise VitvizError(f"{model.name} has patches of {patch} px, which do not fill {size} px; give an image_size such as "
                          f"{size // patch * patch or patch} or {(size // patch + 1) * patch}.")
    try:
        with torch.no_grad():
            return model(torch.full((1, 3, size, size), 0.5))
    except VitvizError as error:
        first = next((part.in_channels for part in model.module.modules() if isinstance(part, nn.Conv2d)), 3)
        if first != 3:
            raise VitvizError(f"{model.name} takes images of {first} channels, and the kit's are RGB: wrap nn.Sequential(layer, "
                              f"module), whose layer makes {first} of 3; torchvision.transforms.Grayscale() makes 1.") from error
        if tower := next((name for name in ("visual", "vision_model") if _says(model.module, name) is not None), None):
            raise VitvizError(f"{error} Wrap its image tower alone: vv.wrap(module.{tower}, …).") from error
        raise


def _unreadable(module: nn.Module) -> str | None:
    """Why no gradient, or no neuron, of a network can be had, with the way out."""
    parts, weights = list(module.modules()), [*module.parameters(), *module.buffers()]
    if any(type(part).__module__.startswith("peft.") for part in parts):
        return "it has adapters of peft; wrap what module.merge_and_unload() returns"
    if any("quantized" in type(part).__module__ for part in parts) or any(
            p.dtype in (torch.uint8, torch.int8) for p in module.parameters()):
        return "its weights are quantized, which leaves no gradient; wrap it as it was before"
    if half := {str(w.dtype).removeprefix("torch.") for w in weights} & {"float16", "bfloat16"}:
        return f"its weights are {half.pop()}, too coarse for gradients of pixels; wrap module.float()"
    if any(hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) for part in parts):
        return "it is compiled in part; wrap it as it was before"
    if any(w.is_meta for w in weights):
        return "its weights are not loaded (device meta)"
    return None


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
