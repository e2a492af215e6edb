"""Why climbing straight up gives noise, and what each regularizer mends (paper, section 2 and the authors' settings)."""

from dataclasses import dataclass, replace

import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from ..datasets.image_set import AT_ONCE, ImageSet
from ..models.reading import tokens
from ..models.sites import check_neurons, find_site, find_sites
from ..models.vision_model import VisionModel
from ..plotting.image_grid import Tile, bundle, contact_sheet
from ..training.pgd import pgd
from ..utils.errors import VitvizError
from ..utils.memory import release_memory
from ..utils.spectrum import radial_spectrum
from ..visualize.recipe import Recipe
from ..visualize.rendering import Rendering
from ..visualize.scores import default_reference, reference_activations
from ..visualize.visualizer import Visualizer
from .faithfulness import named, selectivity
from .result import Result, mean_of, proportion

OFF = {"tv": 0.0, "jitter": 0.0, "color": 0.0, "noise": 0.0, "copies": 1}  # what each regularizer is when it is off
_SHOWN, _STEPS = 8, 10


def most_selective(model: VisionModel, n: int = 16) -> list[int]:
    """The n units of the last layer that tell one concept of Emoji World from the others best, best first."""
    return selectivity(model, next(iter(find_sites(model).values()))[-1]).strength.topk(n).indices.tolist()


def reference_images(model: VisionModel, images=None, n: int = 256) -> torch.Tensor:
    """The first n images (N, 3, S, S) of what pictures are compared with, drawn few at a time, which takes less memory.

    Args:
        images: as ``Stimuli`` takes them, or a ``Stimuli``; by default scenes of Emoji World.
    """
    stimuli = default_reference(model) if images is None else images if isinstance(images, ImageSet) else ImageSet(model, images)
    n, parts = min(n, stimuli.n), []
    for i in range(0, n, AT_ONCE):
        parts.append(stimuli.batch(range(i, min(i + AT_ONCE, n))).cpu())
        release_memory()
    return torch.cat(parts)


def _power(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``progression.power``, of few pictures at a time: spectra of 256 scenes at once take 100 MB."""
    parts = [radial_spectrum(part) for part in pictures.split(4 * AT_ONCE)]
    return parts[0][0], torch.cat([shares for _, shares in parts])


def grain(pictures: torch.Tensor) -> torch.Tensor:
    """Share of the variance of pictures (K, 3, S, S) that is finer than S / 4 cycles a side, in percent: (K,).

    White noise has 79 % at 64 px, because most frequencies are high ones; a flat picture has none.
    """
    _, shares = _power(pictures)
    varies = pictures.var((2, 3)).sum(1) > 1e-10
    return torch.where(varies, 100 * (1 - shares[:, : pictures.shape[-1] // 4].sum(1)), 0.0).clamp(0, 100)


def seams(pictures: torch.Tensor, patch: int) -> torch.Tensor:
    """Share of the squared steps between neighboring pixels that lies on borders of patches, in percent: (K,).

    Borders are (S / patch - 1) of S - 1 places, which is the share in a picture that knows nothing of patches: 11.1 % at 64 px
    with patches of 8. A flat picture has none.
    """
    across = (pictures[..., :, 1:] - pictures[..., :, :-1]).square().sum((1, 2))
    down = (pictures[..., 1:, :] - pictures[..., :-1, :]).square().sum((1, 3))
    steps = across + down
    return 100 * steps[:, patch - 1::patch].sum(1) / steps.sum(1).clamp_min(1e-20)


def patch_side(model: VisionModel) -> int:
    """Side in px of the patches that the first block sees; VitvizError where there are none."""
    first = next(iter(find_sites(model).values()))[0]
    if first.kind == "channel" or not first.grid or model.image_size % first.grid[0]:
        raise VitvizError(f"{model.name} does not cut images into patches of whole pixels, so there are no seams to measure; "
                          f"vision transformers do.")
    return model.image_size // first.grid[0]


def settings(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe with none of its regularizers, with each alone, with all but each, and with all, by name."""
    used = [name for name, off in OFF.items() if getattr(recipe, name) > off]
    if not used:
        raise VitvizError(f"The recipe has no regularizer to take away; give at least one of {', '.join(OFF)} a value.")
    off = {name: OFF[name] for name in used}
    alone = {f"{name} alone": replace(recipe, **{k: v for k, v in off.items() if k != name}) for name in used}
    without = {f"all but {name}": replace(recipe, **{name: off[name]}) for name in used}
    # With two regularizers, one alone is all but the other; with one, alone is all.
    several = (alone if len(used) > 1 else {}) | (without if len(used) > 2 else {})
    return {"none": replace(recipe, **off), **several, "all": recipe}


@dataclass(frozen=True, eq=False)
class Ablation:
    """The same neurons from the same seed with and without regularizers. Shows itself.

    Attributes:
        pictures: for each setting its pictures.
        rough: how much of the pictures is fine grain, and how much of their steps lies on borders of patches, beside scenes.
        worth: how many pictures excite their neuron more than 99 % of scenes do, and how many a judge can name.
    """

    pictures: dict[str, Rendering]
    rough: Result
    worth: Result

    def sheet(self, of: list[str] | None = None) -> Image.Image:
        """A row for each setting (by default all), a column for each of the first eight neurons."""
        tiles = []
        for name in of or self.pictures:
            made = self.pictures[name]
            fine = grain(made.pictures)
            for k, neuron in enumerate(made.neurons[:_SHOWN]):
                where = f"{made.scores.activation[k]:.2f}, grain {fine[k]:.0f} %"
                tiles.append(Tile(made.pictures[k], [name if k == 0 else f"neuron {neuron}", where],
                                  made.scores.status[k] == "alive"))
        first = next(iter(self.pictures.values()))
        title = (f"{first.model}, {first.kind} layer {first.layer}, seed {first.seed}: a column is a neuron ({first.neurons[0]} "
                 f"first), a row a choice of regularizers; below, the activation and the share of variance in fine grain")
        return contact_sheet(tiles, title, side=96, columns=min(_SHOWN, len(first.neurons)))

    def _repr_mimebundle_(self, include=None, exclude=None):
        return bundle(self.sheet(), f"The same neurons with {', '.join(self.pictures)}")


def ablation(model: VisionModel, recipe: Recipe | None = None, layer: int = -1, neurons=range(16), kind: str | None = None,
             images=None, judge: VisionModel | None = None, seed: int = 0) -> Ablation:
    """Pictures of the same neurons from the same seed, with none, each, all but each, and all of a recipe's regularizers.

    Args:
        recipe: by default ``Recipe.quick(model)``. Regularizers that it does not use are not taken away.
        kind: by default the first that the model has: MLP units, or channels of a CNN.
        images: what scores refer to, and what pictures are compared with (see ``Stimuli``); by default scenes of Emoji World.
        judge: another embedded model, which names what pictures show (``faithfulness.named``).
    """
    if judge is not None and (model.card is None or judge.class_names != model.class_names):
        raise VitvizError("Naming pictures needs two embedded models: only of Emoji World is it known what each scene shows. "
                          "Load them with vv.load('emoji-…'), or leave the judge out.")
    site = find_site(model, layer, kind or next(iter(find_sites(model))))
    neurons, pictures, rough, worth = check_neurons(site, neurons), {}, [], []
    patch = None if site.kind == "channel" else patch_side(model)
    known = selectivity(model, site) if judge else None
    for name, chosen in settings(recipe or Recipe.quick(model)).items():
        visualizer = Visualizer(model, chosen, images)
        made = pictures[name] = visualizer.render(layer, neurons, site.kind, seed)
        rough += _rough(name, made.pictures, patch)
        worth.append({"regularizers": name, "pictures": "above the 99th percentile",
                      **proportion(sum(p > 99 for p in made.scores.percentile), len(neurons))})
        if judge:
            hits = named(made.pictures, known.concept[neurons], known.strength[neurons], judge, 0.0).hits
            worth.append({"regularizers": name, "pictures": f"named by {judge.name}", **proportion(hits.sum(), len(hits))})
        release_memory()
    reference = visualizer.reference
    rough += _rough("scenes", reference_images(model, reference), patch)
    where = f"{model.title}, {site}, {len(neurons)} neurons, {made.recipe.steps} steps, seed {seed}"
    chance = ("guessing names", 500 / len(judge.class_names)) if judge else None
    seamless = patch and ("steps on patch borders by chance", 100 * (model.image_size // patch - 1) / (model.image_size - 1))
    return Ablation(pictures, Result(f"{where}: how rough pictures are", "share (%)", pd.DataFrame(rough), seamless),
                    Result(f"{where}: what pictures are worth ({reference.name})", "pictures (%)", pd.DataFrame(worth), chance))


def _rough(name: str, pictures: torch.Tensor, patch: int | None) -> list[dict]:
    rows = [{"regularizers": name, "share": "variance in fine grain", **mean_of(grain(pictures).numpy())}]
    if patch:
        rows.append({"regularizers": name, "share": "steps on patch borders", **mean_of(seams(pictures, patch).numpy())})
    return rows


def spectrum(pictures: dict[str, torch.Tensor], title: str) -> Result:
    """Radially averaged power of pictures by spatial frequency, where white noise of the same variance has 1 everywhere.

    Args:
        pictures: by name, each (K, 3, S, S) in [0, 1], of one size. The interval is over the K of them.
    """
    rows = []
    for name, stack in pictures.items():
        frequencies, shares = _power(stack)
        line = torch.fft.fftfreq(stack.shape[-1]) * stack.shape[-1]
        ring = (line[:, None] ** 2 + line[None] ** 2).sqrt().round().long().flatten()
        inside = torch.bincount(ring)[frequencies]  # frequencies on each ring, over which the power is averaged
        level = shares * (len(ring) - 1) / inside
        rows += [{"frequency (cycles a side)": int(f), "pictures": name, **mean_of(level[:, i].numpy())}
                 for i, f in enumerate(frequencies)]
    return Result(title, "power (white noise: 1)", pd.DataFrame(rows), ("white noise", 1.0))


def sensitivity(model: VisionModel, images=None, n: int = 32, distances=(0.25, 0.5, 1.0, 2.0), layer: int = -1) -> Result:
    """How far a change of a given size can raise a neuron: the most exciting change found, and a random one.

    Each of n images is changed for a neuron of its own, the n evenly spaced among those of the layer.

    Args:
        distances: sizes of the change, L2 over all pixels and channels, pixels in [0, 1]; ``obstacles.look_alike`` makes the
            same change for one image, in twice as many steps.

    Returns:
        The mean rise in standard deviations over the images as they are.
    """
    kind = next(iter(find_sites(model)))
    site, stimuli = find_site(model, layer, kind), ImageSet(model, images)
    n = min(n, stimuli.n)
    known = reference_activations(model, site, stimuli)
    if len(known) < 2:
        raise VitvizError(f"A rise is counted in standard deviations over images, so at least two are needed, got {len(known)}.")
    living = (known.std(0) > 1e-6).nonzero()[:, 0]
    if not len(living):
        raise VitvizError(f"No unit of {site} of {model.name} varies over {stimuli.name}; give images that differ.")
    neurons = living[torch.linspace(0, len(living) - 1, n).round().long()]
    before, spread, rows = known[torch.arange(n), neurons], known.std(0)[neurons], []
    scenes = stimuli.batch(range(n)).to(model.device)
    random = torch.randn(scenes.shape, generator=torch.Generator().manual_seed(0)).to(scenes)
    random /= random.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    own = neurons.to(model.device)[:, None]

    def activation(part: slice):
        return lambda shown: tokens(model, site, model.normalize(shown)).float().mean(1).gather(1, own[part]).sum(1)

    for distance in tqdm(distances, desc=f"{model.name}: changes", unit="size", leave=False, delay=2):
        rises = {"most exciting": [], "random": []}
        for start in range(0, n, AT_ONCE):
            part = slice(start, start + AT_ONCE)
            measure = activation(part)
            worst = pgd(lambda shown, measure=measure: measure(shown).sum(), scenes[part], distance, _STEPS)
            for name, changed in (("most exciting", worst), ("random", (scenes[part] + distance * random[part]).clamp(0, 1))):
                with torch.inference_mode():
                    rises[name].append((measure(changed).cpu() - before[part]) / spread[part])
            release_memory()
        rows += [{"size of the change (L2)": float(distance), "change": name, **mean_of(torch.cat(found).numpy())}
                 for name, found in rises.items()]
    return Result(f"{model.title}, {site}: how far a small change raises a neuron ({stimuli.name})",
                   "rise (standard deviations over scenes)", pd.DataFrame(rows))
