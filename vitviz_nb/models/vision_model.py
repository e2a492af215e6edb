"""A frozen network with everything needed to show it images, and to know what it computes at this moment."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import use_fused_attn
from torch import nn

from ..utils import validate
from ..utils.errors import VitvizError, first_line
from .fingerprint import changes, settings, structure
from .hooks import evaluating
from .text_tower import TextTower, class_embeddings

_FACTORS = np.random.default_rng().integers(-2**63, 2**63, 2048)  # of ``_checksums``: this process's own


class VisionModel:
    """A frozen network: RGB images in, logits or features out. ``vv.load`` and ``vv.wrap`` make it.

    Args:
        module: any ``nn.Module`` from normalized images (N, 3, H, W) to logits (N, classes); it is frozen in place.
        name: what the model is called in captions and caches.
        image_size: side of its square input, px.
        mean, std: per-channel normalization of RGB in [0, 1]; by default what a timm module says of itself, else 0.5.
        class_names: one name per logit, where known.
        license: of the weights.
        trained: False for random weights; every caption then says "untrained".
        card: of an embedded model (see ``cards``).
        text: the text tower of a language-supervised model, whose logits are scaled cosine similarities to the embeddings of
            ``class_names`` written in ``styles``.
        crop_pct, interpolation, crop_mode: how image files become inputs, as in timm's ``create_transform``.

    Attributes:
        lock: held during every forward pass of the kit, so that hooks never see another pass than their own.

    Raises:
        VitvizError: weights that are not finite; arguments of the wrong type or range.
    """

    def __init__(self, module: nn.Module, name: str, image_size: int, mean=None, std=None,
                 class_names: list[str] | None = None, license: str = "unknown", trained: bool = True,
                 card: dict | None = None, text: TextTower | None = None, styles: tuple[str, ...] = (),
                 crop_pct: float = 1.0, interpolation: str = "bicubic", crop_mode: str = "center"):
        if not isinstance(module, nn.Module) or not isinstance(name, str) or not name:
            raise VitvizError(f"A model is made of a torch.nn.Module and a name, got {validate.shown(module)} and "
                              f"{validate.shown(name)}.")
        if not (class_names is None or isinstance(class_names, (list, tuple)) and all(isinstance(n, str) for n in class_names)):
            raise VitvizError(f"class_names is a list of names, one for each logit, or None; got {validate.shown(class_names)}.")
        if not isinstance(text, TextTower | None) or not isinstance(card, dict | None):
            raise VitvizError(f"text is a TextTower and card a dict, or None; got {validate.shown(text)} and "
                              f"{validate.shown(card)}.")
        if not isinstance(styles, (list, tuple)) or not all(isinstance(style, str) for style in styles):
            raise VitvizError(f"styles is a list of names, got {validate.shown(styles)}.")
        self.name, self.image_size = name, validate.whole("image_size", image_size, 1, 8192)
        check_finite(module, name, text)
        says = getattr(module, "pretrained_cfg", None)
        says = says if isinstance(says, dict) else {}
        self.mean = _channels("mean", says.get("mean", (0.5,) * 3) if mean is None else mean)
        self.std = _channels("std", says.get("std", (0.5,) * 3) if std is None else std)
        self.module = module.eval().requires_grad_(False)
        self.text, self._styles = text and text.eval().requires_grad_(False), tuple(dict.fromkeys(styles))
        plain_attention(module, self.device)
        self.trained, self.license, self.card = trained, license, card
        self.class_names = None if class_names is None else list(class_names)  # its own: the caller may change theirs
        self.crop_pct, self.interpolation, self.crop_mode = crop_pct, interpolation, crop_mode
        self.lock = threading.RLock()
        self._memory: dict[Any, tuple[Any, Any]] = {}
        self._changes: list[str] = []
        self._hashed: tuple[bytes, dict, str] | None = None  # what precedes the weights, their sums, and the hash of all
        self._ran, self._volatile, self._settings = False, None, settings(self._parts())
        self._built = structure(self._parts()), self._constants(), self._replaced() or []

    @property
    def title(self) -> str:
        """The name as captions show it."""
        return self.name if self.trained else f"{self.name} (untrained)"

    @property
    def device(self) -> torch.device:
        return next(iter(self.module.parameters()), torch.empty(0)).device

    def to(self, device: str | torch.device) -> "VisionModel":
        """Move the weights; returns the model itself."""
        with self.lock:
            self.module.to(device)
            if self.text:
                self.text.to(device)
            plain_attention(self.module, device)
        return self

    def with_module(self, module: nn.Module, name: str) -> "VisionModel":
        """``module`` as a model of its own, with the preprocessing and classes of this one."""
        return VisionModel(module, name, self.image_size, self.mean, self.std, self.class_names, self.license, self.trained,
                           self.card, self.text, self._styles, self.crop_pct, self.interpolation, self.crop_mode)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """RGB in [0, 1], (..., 3, H, W), as the network expects it, on the images' device."""
        return (images - self.mean.to(images)) / self.std.to(images)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of RGB images (N, 3, image_size, image_size) in [0, 1].

        Raises:
            VitvizError: images of another shape, type or range; logits that are not finite.
        """
        validate.images(f"Images for {self.name}", images, (3, self.image_size, self.image_size))
        with self.lock:
            logits = self.logits(self.forward(self.normalize(images.to(self.device))))
        if not isinstance(logits, torch.Tensor):
            return logits
        if self.class_names and logits.shape[-1] != len(self.class_names):
            raise VitvizError(f"{self.name} has {len(self.class_names)} class names, but {logits.shape[-1]} logits; give one "
                              f"name for each logit, or class_names=None.")
        if logits.device.type != "meta" and not logits.isfinite().all():
            check_finite(self.module, self.name, self.text)
            raise VitvizError(f"The logits of {self.name} for these images contain NaN or infinite numbers, although its weights "
                              f"are finite; run it in a wider precision (model.module.float()).")
        return logits

    def logits(self, output: Any) -> Any:
        """Logits from what the network returns: a language-supervised model's are scaled cosine similarities to its classes."""
        output = _output(output)
        if not self.text:
            return output
        classes = self.remember(("classes", self.device), lambda: class_embeddings(self.text, self.class_names, self._styles))
        return F.normalize(output, dim=-1) @ classes.T

    def forward(self, inputs: torch.Tensor) -> Any:
        """What the network makes of *normalized* inputs (N, 3, H, W): one pass in eval mode, under the lock."""
        weight = next((p for p in self.module.parameters() if p.is_floating_point()), inputs)
        with self.lock, evaluating(self.module), evaluating(self.text or nn.Identity()):
            self._ran = True
            try:
                # Cast only if need be: a cast would compute the visualizer's views (objective.Views), a third of its time.
                return _output(self.module(inputs if inputs.dtype == weight.dtype else inputs.to(weight.dtype)))
            except VitvizError:
                raise
            except (AssertionError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
                if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error):
                    raise
                raise VitvizError(f"{self.name} cannot be run on inputs of shape {tuple(inputs.shape)} "
                                  f"({type(error).__name__}: {first_line(error)[:200]}).") from error

    @property
    def structure(self) -> str:
        """A hash of the modules and their settings, without weights and without what a forward pass itself changes."""
        with self.lock:
            if self._volatile is None:
                self._settle()
            return structure(self._parts(), self._volatile)

    def _parts(self) -> nn.ModuleList:
        return nn.ModuleList([self.module, *filter(None, [self.text])])

    def _settle(self) -> None:
        """Some networks make constants in their first pass (ConViT its position indices), some count their passes."""
        self._volatile, inputs = (), torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)
        with torch.no_grad(), suppress(Exception):  # which the next pass on real images meets, too
            if not self._ran:
                self.forward(inputs)
            before = settings(self._parts())
            if before != self._settings:
                self.forward(inputs)
                self._volatile = {path for path, value in settings(self._parts()).items() if before.get(path) != value}

    @property
    def weights_hash(self) -> str:
        """Eight bytes, in hex, of the SHA-256 of every weight as it is now, the name and the normalization.

        (CLIP's models with and without quickgelu share their weights, but not their name.)
        """
        digest = hashlib.sha256(repr((self.name, self.mean.flatten().tolist(), self.std.flatten().tolist())).encode())
        weights = _tensors(self.module)
        if self.text:
            digest.update(repr((self.class_names, self.text.words, list(self._styles))).encode())
            weights |= {f"text.{key}": value for key, value in _tensors(self.text).items()}
        known, about = self._hashed, digest.digest()
        if known is None or known[:2] != (about, {path: _checksums(value) for path, value in weights.items()}):
            sums: dict = {}
            name = _hash(weights, digest, sums)
            known = self._hashed = about, sums, name
        return known[2]

    def state(self) -> dict | None:
        """What the network computes at this moment, as part of the key of everything cached.

        None where hooks or replaced ``forward`` methods of others are in place: they may compute anything. All weights are
        read at each call (0.01 to 0.02 s for an embedded model, 0.1 for a ViT-B), so ask once an operation.
        """
        with self.lock:
            now = self.structure
            replaced = self._replaced()
            if replaced is None or self.device.type == "meta":
                return None
            precision = sorted({str(p.dtype).removeprefix("torch.") for part in (self.module, self.text) if part is not None
                                for p in part.parameters()})
            if torch.is_autocast_enabled(self.device.type):
                precision.append(f"autocast {torch.get_autocast_dtype(self.device.type)}")
            return {"weights": self.weights_hash, "size": self.image_size, "precision": precision, "structure": now,
                    "constants": sorted(self._constants().items()), "changes": [*self._changes, *replaced]}

    @property
    def unchanged(self) -> bool:
        """Whether the network, but for its weights, is as it was loaded: no more hooks, no changes, float32."""
        state, (structure, constants, replaced) = self.state(), self._built
        now = self._constants()
        return (bool(state) and state["changes"] == replaced and state["structure"] == structure
                and now.keys() == constants.keys()
                and all(size != constants[path][0] or value == constants[path][1] for path, (size, value) in now.items())
                and state["precision"] in ([], ["float32"]))

    def _replaced(self) -> list[str] | None:
        """See ``fingerprint.changes``; torch's text encoders hold their activation function like a replaced method."""
        known = [changes(part) for part in (self.module, self.text) if part is not None]
        return None if None in known else sum(known, [])

    def _constants(self) -> dict[str, tuple[list[int], str]]:
        """Shapes and hashes of the buffers that are no weights, by path: position indices, attention masks."""
        tensors = _tensors(self.module, persistent=False) if self.device.type != "meta" else {}
        return {path: (list(value.shape), _hash({path: value})) for path, value in tensors.items()}

    @contextmanager
    def changed(self, name: str) -> Iterator[None]:
        """Declare, while it is open, a change of what the network computes, for cache keys; nests, and holds the lock."""
        with self.lock:
            self._changes.append(name)
            try:
                yield
            finally:
                self._changes.remove(name)

    def remember(self, key: Any, make: Callable[[], Any], weights: bool = True) -> Any:
        """``make()``, kept in memory under ``key`` for as long as the model's ``state`` stays the same.

        Args:
            weights: False for what depends on the modules alone, not on weights, hooks or changes.
        """
        state = self.state() if weights else structure(self._parts(), self._volatile or ())
        if state is None:
            return make()
        known = self._memory.get(key)
        if known is None or known[0] != state:
            known = self._memory[key] = state, make()
        return known[1]

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.module.parameters()) / 1e6
        return (f"VisionModel({self.title}: {type(self.module).__name__}, {parameters:.1f} M parameters, "
                f"{self.image_size} px, on {self.device}, license {self.license})")


def check_finite(module: nn.Module, name: str, text: nn.Module | None = None) -> None:
    """VitvizError if a weight is NaN or infinite, with the weight's name; a lone number that is infinite is a bound (Gemma's)."""
    for part in filter(None, (module, text)):
        for key, value in part.state_dict().items():
            if value.is_floating_point() and value.device.type != "meta" and not (value.isfinite() | (
                    value.isinf() & (value.ndim == 0))).all():
                raise VitvizError(f"The weights of {name} contain NaN or infinite numbers (in {key}), so no picture can be "
                                  f"made from them; train or download the model again.")


def _output(output: Any) -> Any:
    """The logits of an output of Hugging Face, or of a tuple the first; without logits the whole image's features, if any."""
    if isinstance(output, tuple) and output:
        return output[0]
    found = (getattr(output, name, None) for name in ("logits", "image_embeds", "pooler_output", "last_hidden_state"))
    return output if isinstance(output, torch.Tensor) else next((each for each in found if each is not None), output)


def _tensors(module: nn.Module, persistent: bool = True) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers, or the other buffers, by path; not by ``state_dict``, which hooks may change."""
    tensors = dict(module.named_parameters(remove_duplicate=False)) if persistent else {}
    for path, part in module.named_modules(remove_duplicate=False):
        tensors |= {f"{path}.{name}".lstrip("."): buffer for name, buffer in part._buffers.items()
                    if buffer is not None and (name in part._non_persistent_buffers_set) != persistent}
    return tensors


def _hash(tensors: dict[str, torch.Tensor], digest=None, sums: dict | None = None) -> str:
    """Eight bytes, in hex, of the SHA-256 of tensors; ``sums`` becomes theirs, whatever another thread writes meanwhile."""
    digest = digest or hashlib.sha256()
    for key, value in sorted(tensors.items()):
        value = value.detach().to("cpu", copy=True)
        if sums is not None:
            sums[key] = _checksums(value)
        digest.update(key.encode())
        digest.update(_bytes(value).numpy())
    return digest.hexdigest()[:16]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _checksums(tensor: torch.Tensor) -> tuple[int, bytes]:
    """Number of bytes, and for every 2,048 words of 32 bits a checksum: their sum, each times a random factor, modulo 2^64.

    They tell whether a tensor changed, for less than SHA-256: two different ones have the same with a probability of at most
    2^-33, whatever the difference (multilinear hashing: Lemire and Kaser 2014).
    """
    raw = _bytes(tensor)
    if len(raw) % 4 or raw.storage_offset() % 4:
        raw = torch.cat([raw, raw.new_zeros(-len(raw) % 4)])
    words, n = raw.view(torch.int32), len(_FACTORS)
    whole = len(words) - len(words) % n
    parts = words[:whole].view(-1, n), words[whole:].view(1, -1)
    if raw.is_cuda:  # there, instead of copying all weights to the CPU
        factors = torch.from_numpy(_FACTORS).to(raw.device)
        found = [(part * factors[:part.shape[1]]).sum(1).cpu().numpy() for part in parts]
    else:
        found = [np.einsum("ij,j->i", part.cpu().numpy(), _FACTORS[:part.shape[1]]) for part in parts]
    return len(raw), np.concatenate(found).tobytes()


def plain_attention(module: nn.Module, device: str | torch.device) -> None:
    """On a CPU, write attention out: torch's fused backward pass takes half of all time there (torch 2.15, AVX-512)."""
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = torch.device(device).type != "cpu" and use_fused_attn()


def _channels(what: str, values) -> torch.Tensor:
    try:
        tensor = torch.as_tensor(values, dtype=torch.float32).flatten()
    except Exception:  # torch raises anything for what is no number
        tensor = torch.empty(0)
    if len(tensor) != 3 or not tensor.isfinite().all() or tensor.abs().max() > 10 or what == "std" and not tensor.all():
        raise VitvizError(f"{what} has one number for each of 3 channels, for RGB in [0, 1] (such as 0.485, not 123; a std is "
                          f"not 0), got {validate.shown(values)}.")
    return tensor.view(3, 1, 1)
