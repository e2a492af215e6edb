"""Models by name: the embedded ones, and any timm model."""

import os
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import ImageNetInfo, resolve_model_data_config
from timm.models import load_state_dict
from torch import nn

from ..utils import validate
from ..utils.errors import VitvizError, nearest
from . import cards
from .cards import build, check_embedded, embedded_names, read_card
from .text_tower import TextTower
from .vision_model import VisionModel


@cache
def _timm_names() -> list[str]:
    return timm.list_models() + timm.list_pretrained()


def list_models(pattern: str = "*") -> list[str]:
    """Names that ``load`` takes: the embedded models, then timm's pretrained ones that match ``pattern`` (``*`` is any)."""
    return [*embedded_names(), *timm.list_pretrained(pattern)]


def default_device() -> str:
    """CUDA where there is a card, else MPS, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def usable_device(device: str | None) -> str:
    """``device``, or where it is None the fastest there is; VitvizError for one that this machine does not have."""
    try:
        device = default_device() if device is None else str(torch.device(device))
        (torch.ones(1, device=device) + 1).item()
    except Exception as error:  # torch raises anything for a device that is not there: ImportError for hpu
        raise VitvizError(f"The device {validate.shown(device)} cannot be used here ({str(error).partition(chr(10))[0]}); "
                          f"this machine has {default_device()}.") from None
    return device


def load(name: str = "emoji-vit", pretrained: bool = True, device: str | None = None,
         checkpoint: str | os.PathLike[str] | None = None, class_names: list[str] | None = None) -> VisionModel:
    """A model by name.

    Args:
        name: an embedded model (``vv.list_models()`` starts with them; these work offline); any timm name, such as
            ``"vit_base_patch32_clip_quickgelu_224.openai"``, whose weights timm downloads; or the card of a model that
            ``vitviz train`` made, such as ``"trained/emoji-swin.json"``.
        pretrained: False gives random weights (seed 0), labeled "untrained" wherever they appear.
        device: "cpu", "cuda", "mps", …; by default the fastest there is.
        checkpoint: a file of your own weights, with any number of classes, for the timm model ``name``: safetensors, or what
            ``torch.save`` wrote, read without running anything in it.
        class_names: what the checkpoint's classes are called; by default ImageNet's names where there are 1,000.

    Raises:
        VitvizError: no such model (with the nearest names); weights out of reach, changed, not of this model or not finite; no
            such device.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise VitvizError(f"vv.load takes a model's name, such as 'emoji-vit', got {validate.shown(name)}. A network "
                          f"of your own becomes a model with vv.VisionModel(module, name, image_size).")
    if class_names is not None and checkpoint is None:
        raise VitvizError("class_names names the classes of a checkpoint; give checkpoint= with it.")
    device, embedded = usable_device(device), embedded_names()
    if checkpoint is not None:
        model = _load_checkpoint(name, validate.path("checkpoint", checkpoint), class_names)
    elif name in embedded:
        model = load_from(cards.models_dir(), name, pretrained)
    elif name.endswith(".json"):
        card = validate.path("The card", name)
        model = load_from(card.parent, card.stem, pretrained)
    elif timm.is_model(name):
        model = _load_timm(name, pretrained)
    else:
        raise VitvizError(f"There is no model called {name!r}.{nearest(name, [*embedded, *_timm_names()])} Embedded models: "
                          f"{', '.join(embedded)}; vv.list_models('*clip*') searches timm's.")
    return model.to(device)


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def load_from(folder: Path, name: str, pretrained: bool = True) -> VisionModel:
    """A model from its weights and card in ``folder``, as ``vitviz train`` writes them."""
    card = check_embedded(name, folder) if pretrained else read_card(name, folder)
    module, text = _seeded(lambda: build(card["architecture"])), None
    try:
        if card.get("text"):
            text = _seeded(lambda: TextTower([str(word) for word in card["text"]["words"]], int(card["text"]["width"])))
        if pretrained:
            whole = nn.ModuleDict({"image": module, "text": text}) if text else module
            whole.load_state_dict(load_file(folder / f"{name}.safetensors"))  # float16 on disk, float32 in the module
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError, OSError) as error:
        raise VitvizError(f"The weights of {name} in {folder} do not fit its card ({str(error).splitlines()[0][:200]}); both are "
                          f"written by one `vitviz train`.") from None
    return VisionModel(module, name, card["image_size"], card["mean"], card["std"], card["class_names"], card["license"],
                       trained=pretrained, card=card, text=text, styles=card["recipe"].get("styles", ()))


def _load_timm(name: str, pretrained: bool) -> VisionModel:
    if pretrained:
        from .hub import create_pretrained

        module = create_pretrained(name)
    else:
        module = _seeded(lambda: timm.create_model(name, pretrained=False))
    license = (getattr(module, "pretrained_cfg", None) or {}).get("license") or "see the model's page"
    return _of_timm(module, name, None, license, pretrained)


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
        first = (str(error).splitlines()[1:2] or [str(error)])[0].strip()
        raise VitvizError(f"{path} does not hold weights of {name}: {first[:200]} Give the timm name it was trained "
                          f"with.") from None
    model = _of_timm(module, name, class_names, "of your own", True)
    if class_names is not None and len(class_names) != classes:
        raise VitvizError(f"The weights in {path} have {classes} classes, but {len(class_names)} class_names were given.")
    return model


def _of_timm(module: nn.Module, name: str, class_names: list[str] | None, license: str, trained: bool) -> VisionModel:
    """A model with timm's preprocessing, and ImageNet's class names where there are 1,000 classes and no other names."""
    if class_names is None and getattr(module, "num_classes", 0) == 1000:
        class_names = imagenet_names()
    config = resolve_model_data_config(module)
    return VisionModel(module, name, config["input_size"][-1], config["mean"], config["std"], class_names, license, trained,
                       crop_pct=config["crop_pct"], interpolation=config["interpolation"], crop_mode=config["crop_mode"])


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
