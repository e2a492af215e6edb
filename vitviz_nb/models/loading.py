"""Models by name: the embedded ones, and any timm model."""

import os
import re
from collections.abc import Callable
from functools import cache, lru_cache, partial
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..utils import validate
from ..utils.errors import VitvizError, first_line, nearest
from . import cards
from .cards import build, check_embedded, embedded_names, read_card
from .checkpoints import load_checkpoint
from .text_tower import TextTower
from .vision_model import VisionModel
from .wrapping import check_runs, said_of

_HUB = "hf-hub:"
_SIZES = {"t": "tiny", "ti": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"}


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
        raise VitvizError(f"The device {validate.shown(device)} cannot be used here ({first_line(error)}); "
                          f"this machine has {default_device()}.") from None
    return device


def load(name: str = "emoji-vit", pretrained: bool = True, device: str | None = None,
         checkpoint: str | os.PathLike[str] | None = None, class_names: list[str] | None = None,
         image_size: int | None = None) -> VisionModel:
    """A model by name.

    Args:
        name: an embedded model (``vv.list_models()`` starts with them; these work offline); any timm name, such as
            ``"vit_base_patch32_clip_quickgelu_224.openai"``, whose weights timm downloads; a repository of the hub that holds a
            timm model, ``"hf-hub:user/model"``; or the card of a model that ``vitviz train`` made, such as
            ``"trained/emoji-swin.json"``.
        pretrained: False gives random weights (seed 0), labeled "untrained" wherever they appear.
        device: "cpu", "cuda", "mps", …; by default the fastest there is.
        checkpoint: a file of your own weights for the timm model ``name`` (see ``checkpoints``), with any number of classes.
        class_names: what the checkpoint's classes are called; by default ImageNet's names where there are 1,000.
        image_size: side of the input of a timm model, px; by default its own. timm resamples the position embeddings to it.

    Raises:
        VitvizError: no such model (with the nearest names); weights out of reach, changed, not of this model or not finite; no
            such device; a size that the network does not take.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise VitvizError(f"vv.load takes a model's name, such as 'emoji-vit', got {validate.shown(name)}. A network "
                          f"of your own becomes a model with vv.wrap(module).")
    if class_names is not None and checkpoint is None:
        raise VitvizError("class_names names the classes of a checkpoint; give checkpoint= with it.")
    device, embedded = usable_device(device), embedded_names()
    is_timms = name not in embedded and not name.endswith(".json")
    if not is_timms and (image_size is not None or checkpoint is not None):
        raise VitvizError(f"image_size and checkpoint are for timm's models; {name} has its own.")
    if is_timms:
        if not name.startswith(_HUB) and not timm.is_model(name):
            raise VitvizError(f"There is no model called {name!r}.{_meant(name)} Embedded models: "
                              f"{', '.join(embedded)}; vv.list_models('*clip*') searches timm's.")
        model = _load_timm(name, pretrained, checkpoint, class_names, image_size)
    elif name in embedded:
        model = load_from(cards.models_dir(), name, pretrained)
    else:
        card = validate.path("The card", name)
        model = load_from(card.parent, card.stem, pretrained)
    return model.to(device)


@lru_cache(maxsize=4)
def load_same(name: str, trained: bool, weights: str, image_size: int | None) -> VisionModel:
    """The model that another machine has: of this name, with these weights (their hash); of timm's models also the size.

    Raises:
        VitvizError: this machine cannot load it, or loads other weights.
    """
    try:
        model = load(name, pretrained=trained, image_size=image_size)
    except VitvizError as error:
        raise VitvizError(f"Workers load a model by its name, and cannot load {name}: {error}") from None
    if model.weights_hash != weights:
        raise VitvizError(f"Workers load {name} by its name, and theirs has other weights than yours; they need a model that "
                          f"vv.load({name!r}) gives on every machine. Compute with others on your own.")
    return model


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
        raise VitvizError(f"The weights of {name} in {folder} do not fit its card ({first_line(error)[:200]}); both are "
                          f"written by one `vitviz train`.") from None
    return VisionModel(module, name, card["image_size"], card["mean"], card["std"], card["class_names"], card["license"],
                       trained=pretrained, card=card, text=text, styles=card["recipe"].get("styles", ()))


def _load_timm(name: str, pretrained: bool, checkpoint, class_names: list[str] | None, image_size: int | None) -> VisionModel:
    from .hub import create_from_hub, create_pretrained

    hubs = name.startswith(_HUB)

    def untrained(**options) -> nn.Module:
        return _seeded(lambda: create_from_hub(name, False, **options) if hubs else timm.create_model(name, **options))

    options, given = {}, {}
    if image_size is not None:  # tried before anything large is fetched
        given, options = {"image_size": image_size}, {"img_size": validate.whole("image_size", image_size, 1, 8192)}
        try:
            module = untrained(**options)
        except TypeError:  # a CNN, which takes any size
            options, module = {}, untrained()
        except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
            raise VitvizError(f"{name} cannot be built for {image_size} px ({error}).") from error
        check_runs(_of_timm(module, name, **given), module.pretrained_cfg["input_size"][-1])
    if checkpoint is not None:
        path = validate.path("checkpoint", checkpoint)
        module = load_checkpoint(name, path, partial(untrained, **options))
        given |= {"license": "of your own"} | ({} if class_names is None else {"class_names": class_names})
    elif pretrained:
        module = (create_from_hub if hubs else create_pretrained)(name, **options)
    elif image_size is None:
        module = untrained()
    model = _of_timm(module, name, trained=pretrained or checkpoint is not None, **given)
    if class_names is not None and len(class_names) != module.num_classes:
        raise VitvizError(f"The weights in {path} have {module.num_classes} classes, but {len(class_names)} class_names were "
                          f"given.")
    return model


def _of_timm(module: nn.Module, name: str, **given) -> VisionModel:
    return VisionModel(module, **said_of(module) | given | {"name": name})


def _words(name: str) -> set[str]:
    """The parts of a model's name, sizes written out: of ``dinov2_vits14`` vit, small, 14, dinov, 2."""
    name = re.sub(r"vit([tsblhg])(?=\d)", r"vit-\1-", name.lower()).replace("with-registers", "reg4")
    return {_SIZES.get(part, part) for part in re.findall(r"[a-z]+|\d+", name)}


def _meant(name: str) -> str:
    """'Did you mean …?' with timm's names of what Hugging Face, OpenAI, open_clip or torch.hub call ``name``, or the nearest."""
    owner, rest = name.split("/") if re.fullmatch(r"[a-z][\w-]+/\w\S*", name) else ("", name)
    words = _words(f"{rest}-openai-quickgelu" if owner == "openai" else rest)
    alike = ((_words(each), each) for each in _timm_names())
    ranked = sorted((10 * len(words - known) + len(known - words), len(each), each) for known, each in alike)
    if len(words) < 2 or ranked[0][0] >= (20 if len(words) > 2 else 10):
        return nearest(name, [*embedded_names(), *_timm_names()])
    names = [each if "." in each or not (tag := timm.get_pretrained_cfg(each).tag) else f"{each}.{tag}"
             for *_, each in ranked[:3]]
    return f" Did you mean {', '.join(dict.fromkeys(names))}?" + (
        f" A model of transformers goes through vv.wrap(module); a timm model of the hub is '{_HUB}{name}'." if owner else "")
