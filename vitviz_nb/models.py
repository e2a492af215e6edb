"""Models by name: the embedded ones, and any timm model."""

import hashlib
import importlib
import json
import os
import threading
from functools import cache, cached_property
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.data import ImageNetInfo, resolve_model_data_config
from timm.layers import use_fused_attn
from timm.models import load_state_dict
from torch import nn

from .errors import VitvizError, nearest
from .language import TextTower, class_points
from .paths import data_dir

_RESTORE = "Restore it with git checkout, or install the kit again."


class VisionModel:
    """A frozen classifier with all that is needed to show it pictures.

    Args:
        module: any ``nn.Module`` from normalised images (N, 3, H, W) to logits (N, classes); it is frozen in place.
        name: what the model is called in captions and caches.
        image_size: side of its square input, px.
        mean, std: per-channel normalisation of RGB in [0, 1].
        class_names: one name per logit, where known.
        license: of the weights, as their source states it.
        trained: False for random weights; every caption then says "untrained".
        text: the text tower of a model trained with captions. Its classes are then told apart by their names alone: logits
            are similarities to the points of ``class_names`` written in ``styles``.
        card: for an embedded model, what ``data/models/NAME.json`` says of it.

    Raises:
        VitvizError: weights that are not finite.
    """

    def __init__(self, module: nn.Module, name: str, image_size: int, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
                 class_names: list[str] | None = None, license: str = "unknown", trained: bool = True,
                 card: dict | None = None, text: TextTower | None = None, styles: tuple[str, ...] = ()):
        for key, value in [*module.state_dict().items(), *(text.state_dict().items() if text else ())]:
            if value.is_floating_point() and not value.isfinite().all():
                raise VitvizError(f"The weights of {name} contain NaN or infinite numbers (in {key}), so no picture can be "
                                  f"made from them; train or download the model again.")
        self.module = module.eval().requires_grad_(False)
        self.text, self._styles = text and text.eval().requires_grad_(False), styles
        plain_attention(module, self.device)
        self.name, self.image_size, self.trained = name, image_size, trained
        self.class_names, self.license, self.card = class_names, license, card
        self.memo: dict = {}  # what was found out about the model once: its sites, its answers to reference images
        self.lock = threading.RLock()  # one forward pass at a time: hooks of two threads would read each other's
        self.mean, self.std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)

    @property
    def title(self) -> str:
        """The name as captions show it."""
        return self.name if self.trained else f"{self.name} (untrained)"

    @property
    def device(self) -> torch.device:
        return next(iter(self.module.parameters()), torch.empty(0)).device

    def to(self, device: str | torch.device) -> "VisionModel":
        """Move the weights; returns the model itself."""
        self.module.to(device)
        if self.text:
            self.text.to(device)
            self.__dict__.pop("_class_points", None)
        plain_attention(self.module, device)
        return self

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """RGB in [0, 1], (..., 3, H, W), as the network expects it, on the images' device."""
        return (images - self.mean.to(images)) / self.std.to(images)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of RGB images (N, 3, image_size, image_size) in [0, 1]."""
        found = self.module(self.normalize(images.to(self.device)))
        return F.normalize(found, dim=-1) @ self._class_points.T if self.text else found

    @cached_property
    def _class_points(self) -> torch.Tensor:
        with torch.inference_mode(False):  # else no gradient could pass them later
            return class_points(self.text, self.class_names, dict.fromkeys(self._styles))

    @cached_property
    def weights_hash(self) -> str:
        """Eight bytes, in hex, of the SHA-256 of every weight: part of the key of all that is cached.

        The name and the normalisation count too: some of timm's models share weights and differ in their activation
        function alone (CLIP's with and without quickgelu), which no weight shows.
        """
        digest = hashlib.sha256(repr((self.name, self.mean.flatten().tolist(), self.std.flatten().tolist())).encode())
        weights = self.module.state_dict()
        if self.text:
            digest.update(repr((self.class_names, self.text.words, list(dict.fromkeys(self._styles)))).encode())
            weights |= {f"text.{key}": value for key, value in self.text.state_dict().items()}
        for key, value in sorted(weights.items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.module.parameters()) / 1e6
        return (f"VisionModel({self.title}: {type(self.module).__name__}, {parameters:.1f} M parameters, "
                f"{self.image_size} px, on {self.device}, licence {self.license})")


def models_dir() -> Path:
    return data_dir() / "models"


def embedded_names() -> list[str]:
    """The models that ship with the kit, the default one first."""
    names = sorted(path.stem for path in models_dir().glob("*.json"))
    return sorted(names, key=lambda name: name != "emoji-vit")


def read_card(name: str, folder: Path | None = None) -> dict:
    """What is known of an embedded model: architecture, data, recipe, accuracy, licence, SHA-256 of its weights."""
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
    device = device or default_device()
    try:
        (torch.ones(1, device=device) + 1).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # ImportError: torch.hpu and the like come as packages
        raise VitvizError(f"The device {device!r} cannot be used here ({str(error).splitlines()[0]}); "
                          f"this machine has {default_device()}.") from None
    return device


def load(name: str = "emoji-vit", pretrained: bool = True, device: str | None = None,
         checkpoint: str | os.PathLike[str] | None = None, class_names: list[str] | None = None) -> VisionModel:
    """A model by name.

    Args:
        name: an embedded model (``vv.list_models()`` starts with them; these work offline), any timm name, such as
            ``"vit_base_patch32_clip_quickgelu_224.openai"``, whose weights timm downloads, or the card of a model that
            ``vitviz train`` made, such as ``"trained/emoji-swin.json"``.
        pretrained: False gives random weights (seed 0), labelled "untrained" wherever they appear.
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


def plain_attention(module: nn.Module, device: str | torch.device) -> None:
    """On a CPU, write attention out: torch's fused backward pass takes half of all time there (torch 2.15, AVX-512)."""
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = torch.device(device).type != "cpu" and use_fused_attn()


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
    licence = (getattr(module, "pretrained_cfg", None) or {}).get("license") or "see the model's page"
    return _of_timm(module, name, imagenet_names() if getattr(module, "num_classes", 0) == 1000 else None, licence, pretrained)


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


def _of_timm(module: nn.Module, name: str, class_names: list[str] | None, licence: str, trained: bool) -> VisionModel:
    config = resolve_model_data_config(module)
    return VisionModel(module, name, config["input_size"][-1], config["mean"], config["std"], class_names, licence, trained)


def imagenet_names() -> list[str]:
    """ImageNet's 1,000 classes in order, the first of each one's synonyms."""
    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(i).split(",")[0] for i in range(1000)]
