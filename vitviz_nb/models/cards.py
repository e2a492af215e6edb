"""The embedded models' cards: what is known of each, whether its weights are those the card describes, what it may build."""

import importlib
import json
from pathlib import Path

from torch import nn

from ..utils import validate
from ..utils.errors import VitvizError
from ..utils.files import sha256
from ..utils.paths import data_dir

_RESTORE = "Restore it with git checkout, or install the kit again."
# A card is data from anywhere, so it may name these classes and nothing else: the ones that recipes are made of.
_CLASSES = {f"timm.models.{path}" for path in (
    "vision_transformer.VisionTransformer", "deit.VisionTransformerDistilled", "coat.CoaT", "convit.ConVit",
    "pit.PoolingVisionTransformer", "swin_transformer.SwinTransformer", "twins.Twins", "resnet.ResNet", "resnet.BasicBlock",
    "resnet.Bottleneck")}
_KEYS = {"architecture": dict, "image_size": int, "mean": list, "std": list, "class_names": list, "license": str, "recipe": dict,
         "sha256": str}
_LARGEST = 4096  # of a number among a card's arguments: larger ones would only fill the memory


def models_dir() -> Path:
    """The folder of the models that ship with the kit."""
    return data_dir() / "models"


def embedded_names() -> list[str]:
    """The models that ship with the kit, the default one first."""
    return sorted((path.stem for path in models_dir().glob("*.json")), key=lambda name: (name != "emoji-vit", name))


def read_card(name: str, folder: Path | None = None) -> dict:
    """What is known of an embedded model: architecture, data, recipe, accuracy, license, SHA-256 of its weights.

    Raises:
        VitvizError: no such card, not JSON, or an entry that is missing or of another type.
    """
    path = (folder or models_dir()) / f"{name}.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise VitvizError(f"The card {path} cannot be read ({error}). {_RESTORE}") from None
    wrong = [key for key, kind in _KEYS.items() if not isinstance(card, dict) or not isinstance(card.get(key), kind)]
    if wrong:
        raise VitvizError(f"The card {path} has no valid {', '.join(wrong)}; a card is what `vitviz train` writes. {_RESTORE}")
    return card


def check_embedded(name: str, folder: Path | None = None) -> dict:
    """The card of an embedded model whose weights are those the card describes; VitvizError if not."""
    card, path = read_card(name, folder), (folder or models_dir()) / f"{name}.safetensors"
    if not path.is_file():
        raise VitvizError(f"The weights of {name} are missing: {path} should come with the kit. {_RESTORE}")
    digest = sha256(path)
    if digest != card["sha256"]:
        raise VitvizError(f"{path} is not the file its card describes (SHA-256 {digest[:12]}…, expected {card['sha256'][:12]}…), "
                          f"so it was not loaded. {_RESTORE}")
    return card


def build(architecture: dict) -> nn.Module:
    """The timm module a card describes, ``{"class": "timm.models.….Class", "arguments": {…}}``, with random weights.

    Only classes of a closed list are built; among the arguments (ResNet's block), they are written as their paths, too.
    """
    path, arguments = architecture.get("class"), architecture.get("arguments")
    if not isinstance(arguments, dict) or not isinstance(path, str):
        raise VitvizError('A card\'s architecture is {"class": "timm.models.….Class", "arguments": {…}}, '
                          f"got {validate.shown(architecture)}.")
    build_class, arguments = _argument(path), {key: _argument(value) for key, value in arguments.items()}
    try:
        return build_class(**arguments)
    except Exception as error:  # timm's constructors raise anything for arguments that do not fit
        raise VitvizError(f"The card's arguments do not fit {path} ({type(error).__name__}: {error}).") from None


def _argument(value):
    """An argument as the constructor takes it: numbers within bounds, lists of them, a class of the closed list."""
    if isinstance(value, (list, tuple)):
        return [_argument(each) for each in value]
    if isinstance(value, str):
        if value not in _CLASSES:
            raise VitvizError(f"A card can only build {', '.join(sorted(_CLASSES))}; not {validate.shown(value)}. For any other "
                              f"network, use vv.wrap(module).")
        module, _, name = value.rpartition(".")
        return getattr(importlib.import_module(module), name)
    if value is None or isinstance(value, bool) or isinstance(value, (int, float)) and abs(value) <= _LARGEST:
        return value
    raise VitvizError(f"A card's arguments are numbers up to {_LARGEST}, lists of them and classes, got {validate.shown(value)}.")
