"""The embedded models' cards: what is known of each, and whether its weights are those the card describes."""

import hashlib
import json
from pathlib import Path

from ..utils.errors import VitvizError
from ..utils.paths import data_dir

_RESTORE = "Restore it with git checkout, or install the kit again."


def models_dir() -> Path:
    return data_dir() / "models"


def embedded_names() -> list[str]:
    """The models that ship with the kit, the default one first."""
    names = sorted(path.stem for path in models_dir().glob("*.json"))
    return sorted(names, key=lambda name: name != "emoji-vit")


def read_card(name: str, folder: Path | None = None) -> dict:
    """What is known of an embedded model: architecture, data, recipe, accuracy, license, SHA-256 of its weights."""
    path = (folder or models_dir()) / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VitvizError(f"The card {path} cannot be read ({error}). {_RESTORE}") from None


def check_embedded(name: str, folder: Path | None = None) -> dict:
    """The card of an embedded model whose weights are those the card describes; VitvizError if not."""
    card, path = read_card(name, folder), (folder or models_dir()) / f"{name}.safetensors"
    if not path.exists():
        raise VitvizError(f"The weights of {name} are missing: {path} should come with the kit. {_RESTORE}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != card["sha256"]:
        raise VitvizError(f"{path} is not the file its card describes (SHA-256 {found[:12]}…, expected {card['sha256'][:12]}…), "
                          f"so it was not loaded. {_RESTORE}")
    return card
