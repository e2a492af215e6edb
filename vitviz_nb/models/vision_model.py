"""A frozen model with all that is needed to show it images."""

import hashlib
import threading
from functools import cached_property

import torch
import torch.nn.functional as F
from timm.layers import use_fused_attn
from torch import nn

from ..utils.errors import VitvizError
from .text_tower import TextTower, class_points


class VisionModel:
    """A frozen classifier with all that is needed to show it pictures.

    Args:
        module: any ``nn.Module`` from normalized images (N, 3, H, W) to logits (N, classes); it is frozen in place.
        name: what the model is called in captions and caches.
        image_size: side of its square input, px.
        mean, std: per-channel normalization of RGB in [0, 1].
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

        The name and the normalization count too: some of timm's models share weights and differ in their activation
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
                f"{self.image_size} px, on {self.device}, license {self.license})")


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


def plain_attention(module: nn.Module, device: str | torch.device) -> None:
    """On a CPU, write attention out: torch's fused backward pass takes half of all time there (torch 2.15, AVX-512)."""
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = torch.device(device).type != "cpu" and use_fused_attn()
