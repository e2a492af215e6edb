"""Images of any origin, as models see them and as scores and experiments refer to them."""

import hashlib
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from PIL import Image
from tqdm import tqdm

from ..utils import validate
from ..utils.errors import VitvizError
from ..utils.memory import release_memory
from .emoji_world import STYLES, EmojiWorld, Scenes, index_array
from .image_folder import ImageFolder, check_memory, image_folder
from .labels import label_indices
from .photographs import Photos
from .preprocessing import Preprocessing

if TYPE_CHECKING:  # models import this subpackage
    from ..models.vision_model import VisionModel

AT_ONCE = 16  # images in a forward pass: more are hardly faster, and memory once taken is not always given back
_MOST = 10**7
_MOST_KEPT = 64e6  # bytes of scenes that were drawn, of 16 a pixel with their masks
_kept: tuple[EmojiWorld | None, dict] = (None, {})  # the world that was drawn last, and its scenes by numbers and device
_keeping = threading.Lock()


class ImageSet:
    """A fixed, numbered set of images at the size of a model, with their labels and masks where these are known.

    Args:
        model: whose size and preprocessing the images take, and to whose classes their labels refer.
        images: an ``EmojiWorld`` (its first scenes; by default ``default_world``), an ``ImageFolder`` or the path of a folder,
            a tensor (N, 3, S, S) in [0, 1], a data set as torchvision makes them, of (PIL image, class number) or (PIL image,
            (class number, mask)), the mask a PIL image that is 0 outside the class; or an ``ImageSet`` of any of these.
        n: how many of them; by default all of a folder, tensor or ``ImageSet``, else 1,024 (128 for models that see more than
            96 px).

    Attributes:
        source, n: the images as given, or the default world; how many are numbered, from 0.
        classes: the names of the images' own classes, in the order of ``class_of``; empty where these are not known.
        name, key: what they are called in captions and in the keys of caches.

    Raises:
        VitvizError: images of another size, kind or range (0-255, normalized, NaN), or more than fit into memory; no images.
    """

    def __init__(self, model: "VisionModel", images=None, n: int | None = None):
        if not hasattr(model, "image_size"):
            raise VitvizError(f"Images are numbered for a model, from vv.load or vv.wrap, got {type(model).__name__}.")
        n, size = n if n is None else validate.whole("n", n, 1, _MOST), model.image_size
        default_n = 1024 if size <= 96 else 128  # a large network on a CPU takes its time
        if isinstance(images, ImageSet):
            images, n = images.source, min(n or images.n, images.n)
        self.source = source = default_world(model) if images is None else images
        self._model, self.classes, self._masks, self._paths = model, [], None, []
        if isinstance(source, EmojiWorld):
            if source.size != size:
                raise VitvizError(f"{model.name} sees {size} px; make the world with EmojiWorld(size={size}).")
            self.n, self.classes = n or default_n, source.concepts
            self.name, self.key = f"{self.n:,} Emoji World scenes", f"{source!r} {source.concepts}"
            return
        if isinstance(source, (str, os.PathLike)):
            source = image_folder(source, model, n)
        if isinstance(source, ImageFolder):
            stack, self._masks = source.images, None if source.masks is None else source.masks[:n].clone()
            self._paths = source.paths
            self.classes = sorted(set(source.labels)) if any(source.labels) else []
            self._class_of = [self.classes.index(label) for label in source.labels if self.classes]
        elif isinstance(source, torch.Tensor):
            stack = source
        elif all(hasattr(part, "__len__") and hasattr(part, "__getitem__") for part in (source, getattr(source, "classes", 0))):
            self.classes = [", ".join(c) if isinstance(c, (tuple, list)) else str(c) for c in source.classes]
            stack, self._class_of, self._masks = _read(source, model, min(n or default_n, len(source)), len(self.classes))
        else:
            raise VitvizError("Images are an EmojiWorld, a folder (its path, or vv.image_folder(path, model)), a torchvision "
                              f"data set whose classes are known or a tensor of floats in [0, 1], got {type(source).__name__}.")
        given = isinstance(self.source, (ImageFolder, torch.Tensor))  # and may be changed in place, unlike what has a key
        self._stack = validate.images(f"Images of {model.name}", stack, (3, size, size))[:n].to(torch.float32, copy=given)
        self.n = len(self._stack)
        if not self.n:
            raise VitvizError(f"At least one image is needed, got a tensor of shape {tuple(stack.shape)}.")
        self.name = f"{self.n:,} {'photographs of vv.photos()' if isinstance(source, Photos) else 'images'}"
        known = [self._stack] if self._masks is None else [self._stack, self._masks]
        self.key = hashlib.sha256(b"".join(part.detach().cpu().contiguous().numpy().tobytes() for part in known)).hexdigest()

    def batch(self, numbers) -> torch.Tensor:
        """The images of these numbers: float32 (N, 3, S, S) in [0, 1]."""
        if isinstance(self.source, EmojiWorld):
            return self._scenes(numbers).images.clone()
        return self._stack[torch.from_numpy(index_array("numbers", numbers, self.n - 1)).to(self._stack.device)]

    def batches(self, what: str) -> Iterator[tuple[range, torch.Tensor]]:
        """All images in batches, with their numbers, under a progress bar that says ``what`` is done."""
        thread = threading.current_thread() is not threading.main_thread()  # of the Explorer, which has a bar of its own
        for start in tqdm(range(0, self.n, AT_ONCE), desc=what, unit="batch", leave=False, delay=2, disable=thread):
            numbers = range(start, min(start + AT_ONCE, self.n))
            yield numbers, self.batch(numbers)
            release_memory()  # between batches, or small results that stay keep what lay around them: up to 0.3 GB

    def class_of(self, numbers) -> torch.Tensor:
        """The class of each image of these numbers as an index into ``classes``, whatever the model predicts: int64 (N,).

        Raises:
            VitvizError: the images have no labels.
        """
        if not self.classes:
            raise VitvizError(f"This needs images with labels, and {self.name} have none. Use an EmojiWorld, a folder with a "
                              f"subfolder per class, or a torchvision data set.")
        numbers = index_array("numbers", numbers, self.n - 1)
        if isinstance(self.source, EmojiWorld):
            return torch.as_tensor(self.source.facts(numbers)["concept"], dtype=torch.int64)
        return torch.tensor([self._class_of[i] for i in numbers], dtype=torch.int64)

    def names(self, numbers) -> list[str]:
        """What each of these images shows, one of ``classes``; where that is not known its file's name, or "image 17"."""
        if self.classes:
            return [self.classes[i] for i in self.class_of(numbers)]
        numbers = index_array("numbers", numbers, self.n - 1)
        return [self._paths[i].name for i in numbers] if self._paths else [f"image {i}" for i in numbers]

    def labels(self, numbers) -> torch.Tensor:
        """The classes of the images of these numbers as indices into ``model.class_names``: int64 (N,).

        Raises:
            VitvizError: labels or class names are not known, or a class fits none of the model's or two.
        """
        if not self._model.class_names:
            raise VitvizError(f"{self._model.name} predicts no classes, or their names are not known, so no images give it an "
                              f"accuracy. That needs a model whose class names are known: one of timm's classifiers, or "
                              f"vv.load(name, checkpoint=…, class_names=[…]).")
        classes = self.class_of(numbers).tolist()
        return torch.tensor(label_indices(classes, self.classes, self._model.class_names), dtype=torch.int64)

    def masks(self, numbers) -> torch.Tensor:
        """The mask of each image's class: float32 (N, S, S) in [0, 1], 1 where it is shown; VitvizError if that is not known."""
        if isinstance(self.source, EmojiWorld):
            return self._scenes(numbers).masks.clone()
        if self._masks is None:
            raise VitvizError(f"The {self.name} have no masks; use an EmojiWorld, vv.image_folder(path, model, "
                              f"boxes=\"boxes.csv\"), or a data set whose items are (image, (class number, mask)).")
        return self._masks[index_array("numbers", numbers, self.n - 1)]

    def _scenes(self, numbers) -> Scenes:
        """The scenes of these numbers, kept: their masks are often asked for next, and the same scenes under another change."""
        global _kept
        numbers, device = tuple(index_array("numbers", numbers, self.n - 1).tolist()), self._model.device
        world, drawn = _kept
        if world is self.source and (numbers, device) in drawn:
            return drawn[numbers, device]
        scenes = self.source.batch(numbers, device)
        with _keeping:
            world, drawn = _kept
            count = len(numbers) + sum(len(of) for of, _ in drawn)
            if world is not self.source or count > _MOST_KEPT / (4 * self._model.image_size) ** 2:
                drawn = {}
                _kept = self.source, drawn
            drawn[numbers, device] = scenes
        return scenes


def default_world(model: "VisionModel") -> EmojiWorld:
    """The validation scenes of Emoji World at a model's size, for an embedded model in the styles it was trained on."""
    styles = ((model.card or {}).get("recipe") or {}).get("styles") or STYLES
    return EmojiWorld("val", styles=styles, size=model.image_size)


def derangement(n: int, seed: int) -> torch.Tensor:
    """A random derangement, int64 (n,): the label-shuffle control, in which no image keeps its own label."""
    n, seed = validate.whole("n", n, 2, _MOST), validate.whole("seed", seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def _read(source, model: "VisionModel", n: int, classes: int) -> tuple[torch.Tensor, list[int], torch.Tensor | None]:
    """The first ``n`` items of a data set: images (n, 3, size, size), their class numbers, and masks if it has any."""
    kind, preprocessing = type(source).__name__, Preprocessing.of(model)
    if not n:
        raise VitvizError(f"The data set {kind} is empty.")
    check_memory(n, model.image_size)
    images, labels, masks = [], [], []
    for i in tqdm(range(n), desc="reading images", unit="image", leave=False, delay=2):
        try:
            image, label = source[i][:2]
            label, mask = label if isinstance(label, (tuple, list)) else (label, None)
        except (TypeError, ValueError):
            image = label = mask = None
        if not isinstance(image, Image.Image) or not isinstance(mask, (Image.Image, type(None))):
            raise VitvizError(f"The items of a data set are a PIL image and a class number, or a PIL image and (class number, "
                              f"PIL mask); item {i} of {kind} has a {type(image).__name__}. Make it without transforms.")
        images.append(preprocessing(image))
        labels.append(validate.whole(f"The class of item {i} of {kind}", label, 0, classes - 1))
        masks += [] if mask is None else [preprocessing.mask(mask)]
    if len(masks) not in (0, n):
        raise VitvizError(f"{len(masks)} of {n} items of {kind} have a mask; either all have one, or none.")
    return torch.stack(images).float().div_(255), labels, torch.stack(masks) if masks else None
