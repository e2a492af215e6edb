"""Images of any origin, as models see them and as scores and experiments refer to them."""

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from timm.data import ImageNetInfo
from tqdm import tqdm

from ..utils.errors import VitvizError
from ..utils.memory import release_memory
from .emoji_world import STYLES, EmojiWorld, Scenes
from .image_folder import ImageFolder, fit

if TYPE_CHECKING:  # models are a room above
    from ..models.vision_model import VisionModel

AT_ONCE = 16  # images in a forward pass: more are hardly faster, and memory once taken is not always given back


class ImageSet:
    """A fixed, numbered set of images at the size of a model, with what is known of them.

    Args:
        model: whose size the images take, and to whose classes their labels refer.
        images: an ``EmojiWorld`` (its first scenes are used), an ``ImageFolder``, a data set as torchvision makes them, whose
            items are (PIL image, class number) or (PIL image, (class number, mask)), the mask a PIL image that is 0 where the
            thing is not, or a tensor (N, 3, S, S) in [0, 1]; by default the validation scenes of Emoji World, for an embedded
            model in the styles it was trained on.
        n: how many of them; by default all of a folder or tensor, else 1,024 (128 for models that see more than 96 px).

    Attributes:
        source: the images as given, or the default world.
        n: how many there are, numbered from 0.
        name: what they are called in captions.
        key: fixed by the images, and part of the key of what is cached.

    Raises:
        VitvizError: images of another size or kind; fewer than one.
    """

    def __init__(self, model: "VisionModel", images=None, n: int | None = None):
        size, few = model.image_size, 1024 if model.image_size <= 96 else 128  # a large network on a CPU takes its time
        self.source = source = default_world(model) if images is None else images
        self._classes, self._device, self._labels, self._masks, self._drawn = model.class_names, model.device, None, None, None
        if n is not None and n < 1:
            raise VitvizError(f"At least one image is needed, got n={n}.")
        if isinstance(source, EmojiWorld):
            if source.size != size:
                raise VitvizError(f"{model.name} sees {size} px; make the world with EmojiWorld(size={size}).")
            self.n, self._labels = n or few, source.concepts
            self.name, self.key = f"{self.n:,} Emoji World scenes", f"{source!r} {source.concepts}"
            return
        stack = source
        if isinstance(source, ImageFolder):
            stack, self._labels = source.images, source.labels if any(source.labels) else None
            self._masks = source.masks
        elif not isinstance(source, torch.Tensor) and hasattr(source, "__getitem__") and hasattr(source, "classes"):
            stack, self._labels, self._masks = _read(source, size, min(n or few, len(source)))
        if not isinstance(stack, torch.Tensor) or not stack.is_floating_point():
            raise VitvizError("Images are an EmojiWorld, vv.image_folder(path, size), a torchvision data set or a tensor of "
                              f"floats in [0, 1], got {type(source).__name__}.")
        if stack.dim() != 4 or tuple(stack.shape[1:]) != (3, size, size) or not len(stack):
            raise VitvizError(f"{model.name} takes images of shape (N, 3, {size}, {size}), got {tuple(stack.shape)}.")
        self._stack = stack[:n].float()
        self.n = len(self._stack)
        self.name = f"{self.n:,} images"
        known = [self._stack] if self._masks is None else [self._stack, self._masks[:n]]
        self.key = hashlib.sha256(b"".join(part.cpu().contiguous().numpy().tobytes() for part in known)).hexdigest()

    def batch(self, numbers) -> torch.Tensor:
        """Images (N, 3, S, S) in [0, 1]."""
        return self._scenes(numbers).images if isinstance(self.source, EmojiWorld) else self._stack[list(numbers)]

    def batches(self, what: str) -> Iterator[tuple[range, torch.Tensor]]:
        """All images in batches, with their numbers, under a progress bar that says ``what`` is done."""
        for start in tqdm(range(0, self.n, AT_ONCE), desc=what, unit="batch", leave=False, delay=2):
            numbers = range(start, min(start + AT_ONCE, self.n))
            yield numbers, self.batch(numbers)
            release_memory()  # between batches, or small results that stay keep what lay around them: up to 0.3 GB

    def labels(self, numbers) -> torch.Tensor:
        """int64 (N,), the class of each image among the model's own; VitvizError if a class is unknown to the model."""
        if not self._labels or not self._classes:
            raise VitvizError(f"Accuracy needs images with labels and a model whose class names are known; {self.name} have "
                              f"{'labels' if self._labels else 'none'}. Use an EmojiWorld, a folder with a subfolder per class, "
                              f"or a torchvision data set.")
        place = {name.casefold(): i for i, name in enumerate(self._classes)}
        if len(self._classes) == 1000:  # ImageNet's own folders are named by number, such as n01440764
            place |= {name: i for i, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
        if isinstance(self.source, EmojiWorld):
            names = [self._labels[i] for i in self.source.facts(np.asarray(numbers))["concept"]]
        else:
            names = [self._labels[i] for i in numbers]
        unknown = sorted({name for name in names if name.casefold() not in place})
        if unknown:
            raise VitvizError(f"The model knows no class {unknown[0]!r} ({len(unknown)} of the labels are not among its "
                              f"{len(place)} class names, such as {self._classes[0]!r}). Name the folders as it does.")
        return torch.tensor([place[name.casefold()] for name in names])

    def masks(self, numbers) -> torch.Tensor:
        """float32 (N, S, S) in [0, 1], where each image shows its class; VitvizError if that is not known."""
        if isinstance(self.source, EmojiWorld):
            return self._scenes(numbers).masks
        if self._masks is None:
            raise VitvizError(f"It is not known where the {self.name} show their things; use an EmojiWorld, vv.image_folder(path,"
                              f" size, boxes=\"boxes.csv\"), or a data set whose items are (image, (class number, mask)).")
        return self._masks[list(numbers)]

    def _scenes(self, numbers) -> Scenes:
        """The scenes of these numbers; the last ones asked for are kept, because their masks are often asked for next."""
        numbers = tuple(int(i) for i in numbers)
        if self._drawn is None or self._drawn[0] != numbers:
            self._drawn = numbers, self.source.batch(numbers, self._device)
        return self._drawn[1]


def default_world(model: "VisionModel") -> EmojiWorld:
    """The validation scenes of Emoji World at a model's size, for an embedded model in the styles it was trained on."""
    return EmojiWorld("val", styles=model.card["recipe"]["styles"] if model.card else STYLES, size=model.image_size)


def derangement(n: int, seed: int) -> torch.Tensor:
    """For each of ``n`` images another of them, by lot: int64 (n,), the control of whatever goes by what an image shows.

    None is its own other, as in a plain shuffle one would be on average: in batches of 16, one image in 16.
    """
    lot = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(lot).scatter_(0, lot, lot.roll(1))


def _read(source, size: int, n: int) -> tuple[torch.Tensor, list[str], torch.Tensor | None]:
    """The first ``n`` items of a torchvision data set: images (n, 3, size, size), names of their classes, masks if it has any."""
    if not n:
        raise VitvizError(f"The data set {type(source).__name__} is empty.")
    classes = [name if isinstance(name, str) else name[0] for name in source.classes]  # ImageNet has tuples of synonyms
    images, labels, masks = [], [], []
    for i in tqdm(range(n), desc="reading images", unit="image", leave=False, delay=2):
        image, label = source[i][:2]
        if not isinstance(image, Image.Image):
            raise VitvizError(f"The items of a data set are a PIL image and a class number; item {i} of "
                              f"{type(source).__name__} has a {type(image).__name__}. Make the data set without transforms.")
        if isinstance(label, (tuple, list)):
            label, mask = label
            masks.append((fit(mask.convert("L").point(lambda value: 255 * (value > 0)), size)[0] > 127).float())
        images.append(fit(image, size))
        labels.append(classes[int(label)])
    return torch.stack(images).float().div_(255), labels, torch.stack(masks) if masks else None
