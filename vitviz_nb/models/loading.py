"""Models by name: the embedded ones, and any timm model."""

import importlib
import os
from functools import cache
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from timm.data import ImageNetInfo, resolve_model_data_config
from timm.models import load_state_dict
from torch import nn

from ..utils.errors import VitvizError, nearest
from .cards import check_embedded, embedded_names, models_dir, read_card
from .text_tower import TextTower
from .vision_model import VisionModel, usable_device


@cache
def _timm_names() -> list[str]:
    return timm.list_models() + timm.list_pretrained()


def list_models(pattern: str = "*") -> list[str]:
    """Names that ``load`` takes: the embedded models, then timm's pretrained ones that match ``pattern`` (``*`` is any)."""
    return [*embedded_names(), *timm.list_pretrained(pattern)]


def load(name: str = "emoji-vit", pretrained: bool = True, device: str | None = None,
         checkpoint: str | os.PathLike[str] | None = None, class_names: list[str] | None = None) -> VisionModel:
    """A model by name.

    Args:
        name: an embedded model (``vv.list_models()`` starts with them; these work offline), any timm name, such as
            ``"vit_base_patch32_clip_quickgelu_224.openai"``, whose weights timm downloads, or the card of a model that
            ``vitviz train`` made, such as ``"trained/emoji-swin.json"``.
        pretrained: False gives random weights (seed 0), labeled "untrained" wherever they appear.
        device: "cpu", "cuda", "mps", …; by default the fastest there is.
        checkpoint: a file of your own weights for the timm model ``name``: safetensors, or what ``torch.save`` wrote, read
            without running anything in it. It may have any number of classes.
        class_names: what those classes are called, in order; by default ImageNet's names where there are 1,000.

    Raises:
        VitvizError: no such model (with the nearest names); weights out of reach, changed, not of this model or not finite; no
            such device.
    """
    if not isinstance(name, str):
        raise VitvizError(f"vv.load takes a model's name, such as 'emoji-vit', got {name!r}.")
    device, embedded = usable_device(device), embedded_names()
    if checkpoint is not None:
        model = _load_checkpoint(name, Path(checkpoint).expanduser(), class_names)
    elif name in embedded:
        model = load_from(models_dir(), name, pretrained)
    elif name.endswith(".json"):
        card = Path(name).expanduser()
        model = load_from(card.parent, card.stem, pretrained)
    elif timm.is_model(name):
        model = _load_timm(name, pretrained)
    else:
        raise VitvizError(f"There is no model called {name!r}.{nearest(name, [*embedded, *_timm_names()])} Embedded models: "
                          f"{', '.join(embedded)}; vv.list_models('*clip*') searches timm's.")
    return model.to(device)


def build(architecture: dict) -> nn.Module:
    """The timm module a card describes: ``{"class": "timm.models.….Class", "arguments": {…}}``, with random weights.

    An argument that is itself such a class (ResNet's block) is written as its path.
    """
    def named(path: str):
        module, _, name = path.rpartition(".")
        if not module.startswith("timm.models."):
            raise VitvizError(f"An embedded model's class must come from timm.models, not {path!r}.")
        return getattr(importlib.import_module(module), name)

    arguments = {k: named(v) if isinstance(v, str) and v.startswith("timm.") else v for k, v in architecture["arguments"].items()}
    return named(architecture["class"])(**arguments)


def _seeded(make) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def load_from(folder: Path, name: str, pretrained: bool = True) -> VisionModel:
    """A model from its weights and card in ``folder``, as ``vitviz train`` writes them."""
    card = check_embedded(name, folder) if pretrained else read_card(name, folder)
    module = _seeded(lambda: build(card["architecture"]))
    text = card.get("text") and _seeded(lambda: TextTower(**card["text"]))
    if pretrained:
        whole = nn.ModuleDict({"image": module, "text": text}) if text else module
        whole.load_state_dict(load_file(folder / f"{name}.safetensors"))  # float16 on disk, float32 in the module
    return VisionModel(module, name, card["image_size"], card["mean"], card["std"], card["class_names"], card["license"],
                       trained=pretrained, card=card, text=text, styles=card["recipe"]["styles"])


def _load_timm(name: str, pretrained: bool) -> VisionModel:
    if pretrained:
        from .hub import create_pretrained

        module = create_pretrained(name)
    else:
        module = _seeded(lambda: timm.create_model(name, pretrained=False))
    license = (getattr(module, "pretrained_cfg", None) or {}).get("license") or "see the model's page"
    return _of_timm(module, name, imagenet_names() if getattr(module, "num_classes", 0) == 1000 else None, license, pretrained)


def _load_checkpoint(name: str, path: Path, class_names: list[str] | None) -> VisionModel:
    if not timm.is_model(name):
        raise VitvizError(f"A checkpoint needs the timm name of its model; there is none called {name!r}."
                          f"{nearest(name, _timm_names())}")
    if not path.is_file():
        raise VitvizError(f"There is no checkpoint {path}; name a .safetensors, .pth or .bin file.")
    try:
        weights = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # a file of another kind fails in any way there is
        raise VitvizError(f"{path} is no checkpoint that can be read safely ({str(error).splitlines()[0]}); save its weights "
                          f"alone: safetensors.torch.save_file(model.state_dict(), path).") from None
    classifier = timm.create_model(name, pretrained=False).pretrained_cfg.get("classifier") or "head"
    head = weights.get(f"{classifier if isinstance(classifier, str) else classifier[0]}.weight")
    classes = len(head) if head is not None else 0
    module = timm.create_model(name, pretrained=False, num_classes=classes)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise VitvizError(f"{path} does not hold weights of {name}: {lines[min(1, len(lines) - 1)].strip()[:200]} "
                          f"Give the timm name it was trained with.") from None
    if class_names is not None and len(class_names) != classes:
        raise VitvizError(f"The weights in {path} tell {classes} classes apart, but {len(class_names)} names were given.")
    return _of_timm(module, name, class_names or (imagenet_names() if classes == 1000 else None), "of your own", True)


def _of_timm(module: nn.Module, name: str, class_names: list[str] | None, license: str, trained: bool) -> VisionModel:
    config = resolve_model_data_config(module)
    return VisionModel(module, name, config["input_size"][-1], config["mean"], config["std"], class_names, license, trained)


def imagenet_names() -> list[str]:
    """ImageNet's 1,000 classes in order, the first of each one's synonyms."""
    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(i).split(",")[0] for i in range(1000)]
