"""The images that activate a neuron most."""

import warnings
from dataclasses import dataclass

import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from ..datasets.image_set import ImageSet
from ..models.reading import tokens
from ..models.sites import Site, check_neurons, find_site
from ..models.vision_model import VisionModel
from ..plotting.alt_text import bundle
from ..plotting.image_grid import Tile, contact_sheet, with_map
from ..utils import validate
from ..utils.errors import VitvizError
from . import shared
from .atlas import STRONGEST, Atlas, embedded
from .scores import reference_activations, reference_set
from .shared import check_client


@dataclass(frozen=True, eq=False)
class TopImages:
    """The reference images that activate a neuron most. Shows itself in a notebook.

    Attributes:
        images: (k, 3, S, S) in [0, 1], the strongest first.
        activations: (k,).
        maps: (k, rows, columns), the neuron's activation at each patch; None where tokens do not lie on the image.
        indices: (k,), their numbers in the reference.
        names: (k,), the concept or class that each shows, or its file's name (see ``ImageSet.names``).
    """

    images: torch.Tensor
    activations: list[float]
    maps: torch.Tensor | None
    indices: list[int]
    names: list[str]
    title: str

    def sheet(self, columns: int = 3) -> Image.Image:
        """Rows of images, each row with its activation maps beneath where there are any."""
        tiles = []
        for start in range(0, len(self.images), columns):
            row = range(start, min(start + columns, len(self.images)))
            tiles += [Tile(self.images[i], [self.names[i][:19], f"{self.activations[i]:.3g}"]) for i in row]
            if self.maps is not None:
                tiles += [Tile(with_map(self.images[i], self.maps[i]), ["yellow: most active"] * (i == start)) for i in row]
        return contact_sheet(tiles, self.title, side=128, columns=columns)

    def _repr_mimebundle_(self, include=None, exclude=None):
        return bundle(self.sheet(columns=6), f"{self.title}, with activation maps")


def top_images(model: VisionModel | Atlas, layer: int, neuron: int, kind: str | None = None, images=None,
               k: int = 6, client=None) -> TopImages:
    """The ``k`` images that activate one neuron most, with its activation at every patch.

    ``images`` is an ``ImageSet`` or what it takes; by default scenes of Emoji World. An atlas whose reference images are
    ``vv.photos()`` answers without its model, with at most 6 of these. With a ``client`` from ``vv.connect`` its workers find the
    scenes; other images stay on this machine, which then computes.
    """
    check_client(client)
    if isinstance(model, Atlas):
        if images is not None or kind not in (None, model.facts["kind"]):
            raise VitvizError(f"An atlas has its own images and kind, {model.facts['kind']}; for others give the model.")
        return _of_atlas(model, layer, neuron, validate.whole("k", k, 1, STRONGEST))
    site, k = find_site(model, layer, kind), validate.whole("k", k, 1)
    neuron, *others = check_neurons(site, neuron)
    if others:
        raise VitvizError(f"Top images are of one neuron, got {1 + len(others)}; call top_images once for each.")
    reference = reference_set(model, images)
    found = None
    if client is not None and reference is reference_set(model):
        try:
            found = shared.strongest(client, model, site, neuron, k)
        except shared.OutOfReach as error:
            warnings.warn(f"The shared visualizer is out of reach ({error}), so this machine computes.", stacklevel=2)
    numbers, values, maps = found or strongest(model, site, neuron, reference, k)
    shown = reference.batch(numbers).cpu().clone()
    return TopImages(shown, values, maps, numbers, reference.names(numbers),
                     f"{model.title}, {site}, neuron {neuron}: strongest of {reference.name}")


def strongest(model: VisionModel, site: Site, neuron: int, reference: ImageSet,
              k: int) -> tuple[list[int], list[float], torch.Tensor | None]:
    """Numbers of the images that activate a neuron most, its activations (k,) and, if any, maps (k, rows, columns)."""
    atlas = embedded(model.name) if reference is reference_set(model) and k <= STRONGEST else None
    if atlas and atlas.covers(model, site.kind, site.layer):
        numbers, values = (list(row)[:k] for row in atlas.strongest(site.layer, neuron))
    else:
        known = reference_activations(model, site, reference)[:, neuron]
        best = known.topk(min(k, len(known)))
        numbers, values = best.indices.tolist(), best.values.tolist()
    if not site.grid:
        return numbers, values, None
    with torch.inference_mode():
        maps = tokens(model, site, model.normalize(reference.batch(numbers).to(model.device)))[..., neuron].float().cpu()
    return numbers, values, maps.view(len(numbers), *site.grid)


def _of_atlas(atlas: Atlas, layer: int, neuron: int, k: int) -> TopImages:
    photos, maps = atlas.reference_photos(), atlas.maps(layer, neuron)
    numbers, values = (row[:k] for row in atlas.strongest(layer, neuron))
    shown = torch.stack([to_tensor(photos[i][0]) for i in numbers])
    facts = atlas.facts
    return TopImages(shown, values, maps if maps is None else maps[:k], numbers, [photos.labels[i] for i in numbers],
                     f"{facts['model']}, {facts['kind']} layer {layer}, neuron {neuron}: strongest of {facts['reference']}")
