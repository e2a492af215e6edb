"""Neurons with category-level or style-level meaning: which facts about an image explain activations (paper, section 6).

Emoji World knows every fact of its scenes, so the fraction of a unit's variance that each fact explains can be measured.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..datasets.backgrounds import CONTEXTS
from ..datasets.emoji_world import COUNTS, POSITIONS, ROTATIONS, SIZES, STYLES, EmojiWorld, Scenes
from ..datasets.image_set import AT_ONCE, ImageSet, default_world, derangement
from ..models.reading import activations, each_layer
from ..models.sites import find_site, find_sites
from ..models.vision_model import VisionModel
from ..utils import cache, validate
from ..utils.errors import NotApplicable, VitvizError
from ..utils.memory import release_memory
from ..utils.statistics import ClassSums, pearson, variance_explained
from .result import Result, mean_of, proportion

FACTS = ("concept", "category", "style", "color", "context", "count", "size", "rotation", "position")
STORED = 2048  # scenes over which data/measured has variance_by_fact of some models
TOKENS = {"patches": "mean over patch tokens", "cls": "CLS token"}  # at which a unit's activation in an image is taken
# Images (N, 3, S, S) in [0, 1], and under the key of each fact a number for each image: int64 (N,).
Batches = Iterator[tuple[torch.Tensor, dict[Hashable, torch.Tensor]]]


@dataclass(frozen=True, eq=False)
class ExplainedVariance:
    """Fraction of every unit's variance that facts about the images explain (ε², ``statistics.variance_explained``).

    Facts that go together each count what they share.
    """

    facts: tuple[str, ...]
    fractions: list[torch.Tensor]  # (facts, units) of each layer
    title: str

    def by_layer(self) -> Result:
        """The mean over units, by layer and fact, in percent."""
        rows = [{"layer": layer, "explained by": fact, **mean_of(100 * fractions[i])}
                for layer, fractions in enumerate(self.fractions) for i, fact in enumerate(self.facts)]
        return Result(f"{self.title}: variance of activations explained by facts (ε²)", "variance explained (%)", rows)

    def best(self, fact: str, layer: int = -1, count: int = 8) -> list[tuple[int, float]]:
        """The units of a layer that ``fact`` explains best, as (unit, fraction), the best first."""
        validate.choice("fact", fact, self.facts)
        layer = validate.whole("layer", layer, -len(self.fractions), len(self.fractions) - 1)
        fractions = self.fractions[layer][self.facts.index(fact)]
        top = fractions.topk(min(validate.whole("count", count, 1), len(fractions)))
        return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def variance_by_fact(model: VisionModel, images=None, *, n: int | None = None, kind: str | None = None,
                     facts: dict[str, list] | None = None, shuffled: bool = False, token: str = "patches") -> ExplainedVariance:
    """Fraction of every unit's variance that each fact explains, at all layers.

    Args:
        images: by default validation scenes of Emoji World in all five styles, each object on a random background, so that
            concept and context are independent; else images (see ``ImageSet``).
        n: by default 8,192 scenes, or as ``ImageSet`` says. For 2,048, which take a minute of a CPU core, models in
            ``data/measured`` have it stored, for the default scenes.
        facts: for images other than scenes, what is known of each: a name, and a value for each image. By default their classes.
        shuffled: the control: the facts of other images.
        token: one of ``TOKENS``: "patches" takes activations as means over patch tokens, "cls" those at the CLS token. Models
            without one in every layer raise NotApplicable.
    """
    validate.choice("token", token, TOKENS)
    world = images if isinstance(images, EmojiWorld) else EmojiWorld("val", size=model.image_size) if images is None else None
    if world and facts:
        raise VitvizError("The facts of Emoji World's scenes are known; give facts only with images of your own.")
    image_set = ImageSet(model, world or images, 8192 if world and n is None else n)
    known, kind = {} if world else _given(image_set, facts), find_site(model, kind=kind).kind

    def batches() -> Batches:
        if known:
            every = ((images, {name: labels[list(numbers)] for name, labels in known.items()})
                     for numbers, images in image_set.batches(f"{model.name}: facts"))
        else:
            every = in_random_contexts(model, image_set.source, range(image_set.n), "facts", scene_facts)
        before: dict[str, torch.Tensor] = {}
        for i, (images, of) in enumerate(every):  # a last image alone takes the facts of one before
            others, order = (of, derangement(len(images), i * AT_ONCE)) if len(images) > 1 else (before, [0])
            yield images, ({("own", name): labels for name, labels in of.items()}
                           | {("shuffled", name): labels[order] for name, labels in others.items()})
            before = of

    def measure() -> dict[str, np.ndarray]:  # with and without shuffling from one pass over the images
        return {f"{whose}{i}": torch.stack([of_layer[whose, name].variance_explained() for name in names]).numpy()
                for i, of_layer in enumerate(sums_by_fact(model, kind, batches(), token=token)) for whose in ("own", "shuffled")}

    names = tuple(known) or FACTS
    about = {"kind": kind, "images": image_set.key, "n": image_set.n, "styles": STYLES, "token": token,
             "facts": {name: labels.tolist() for name, labels in known.items()}}
    shapes = {f"{whose}{site.layer}": (len(names), site.units) for site in find_sites(model)[kind]
              for whose in ("own", "shuffled")}
    stored = None
    if images is None and n == STORED and kind == find_site(model).kind and model.card and model.unchanged:
        stored = cache.shipped(f"{model.name}-explained", model.weights_hash)
    stored = ({name: stored[f"{name} {token}"] for name in shapes} if stored else
              cache.made(model, about, "explained", measure, shapes))
    chosen = [torch.from_numpy(stored[name]) for name in shapes if name.startswith("shuffled") == bool(shuffled)]
    about_images = f"{TOKENS[token]}, {image_set.name}{', shuffled facts' if shuffled else ''}"
    return ExplainedVariance(names, chosen, f"{model.title} ({about_images})")


def sums_by_fact(model: VisionModel, kind: str | None, batches: Batches, classes: int = 0,
                 token: str = "patches") -> list[dict[Hashable, ClassSums]]:
    """Sums of activations at ``token`` by each fact about the images, of ``classes`` numbers at least: a layer each.

    With token "both" a layer has twice its units: averaged over patch tokens, then at the CLS token.
    """
    if token != "patches" and not _has_cls(model, kind):
        raise NotApplicable(f"{model.name} has no CLS token in every layer, as a ViT or a DeiT has; use token='patches'.")
    keep = {"cls": lambda site, tokens: tokens[:, 0].clone(),
            "both": lambda site, tokens: torch.cat([tokens[:, site.prefix:].mean(1), tokens[:, 0]], 1)}
    sums: list[dict[Hashable, ClassSums]] = []
    for images, facts in batches:
        layers = (activations(model, kind, images) if token == "patches" else
                  each_layer(model, kind, images, keep[token], prefix=True))
        sums = sums or [{name: ClassSums(classes, layer.shape[1]) for name in facts} for layer in layers]
        for layer, of_layer in zip(layers, sums, strict=True):
            for name, labels in facts.items():
                of_layer[name].add(layer, labels)
    return sums


def _has_cls(model: VisionModel, kind: str | None) -> bool:
    sites = find_sites(model)
    return "cls" in sites and all(site.prefix for site in sites[find_site(model, kind=kind).kind])


def in_random_contexts(model: VisionModel, world: EmojiWorld, numbers: range, what: str,
                       facts: Callable[[Scenes], dict[str, torch.Tensor]]) -> Batches:
    """Images of scenes, each in its ``random_contexts``, with their facts, in batches under a progress bar that says ``what``."""
    for i in tqdm(range(0, len(numbers), AT_ONCE), desc=f"{model.name}: {what}", unit="batch", leave=False, delay=2):
        part = numbers[i:i + AT_ONCE]
        scenes = world.batch(part, model.device, contexts=random_contexts(part))
        yield scenes.images, facts(scenes)


def across_styles(model: VisionModel, n: int = 2048) -> Result:
    """Correlation of units' concept profiles (mean activations for each concept) in 3D and in each style, by layer: mean over
    units. "3d" itself, on other scenes, is the noise ceiling; the control compares with the profiles of other concepts.
    """
    validate.whole("n", n, AT_ONCE, 100_000)
    sites, first_style = find_sites(model)[find_site(model).kind], STYLES[0]
    own, shown = _profiles(model, first_style, range(n))
    held_out, seen = zip(*(_profiles(model, style, range(n, 2 * n)) for style in STYLES), strict=True)
    shown = shown & torch.stack(seen).all(0)
    rows, shuffle = [], torch.randperm(int(shown.sum()), generator=torch.Generator().manual_seed(0))
    for i, site in enumerate(sites):
        first = own[i][shown]
        compared = {style: profile[i][shown] for style, profile in zip(STYLES, held_out, strict=True)}
        compared["3d, other concepts"] = compared[first_style][shuffle]
        for name, second in compared.items():
            varies = (first.std(0) > 0) & (second.std(0) > 0)
            rows.append({"layer": site.layer, "3d and": name, **mean_of(pearson(first, second)[varies])})
    return Result(f"{model.title}: concept profiles of units in 3D and in other styles ({n:,} scenes each)", "correlation", rows)


def profiles_by_category(model: VisionModel, n: int = 2048, token: str = "patches") -> Result:
    """Fraction of units' concept profiles (mean activations for each concept, in one style) that the concepts' categories explain
    (ε², in percent), by layer and style: mean over units. The control: the mean of 20 shuffles of the categories among concepts.

    A profile also varies with the scenes of each concept, the more the fewer they are, and no category explains that: the
    fraction rises with ``n`` and with how much the concept tells, and is compared at equal ``n``.

    Args:
        n: scenes in each style, those on which ``across_styles`` with the same n compares: the second of the two is then fast.
        token: one of ``TOKENS``, as for ``variance_by_fact``.
    """
    validate.choice("token", token, TOKENS)
    validate.whole("n", n, AT_ONCE, 100_000)
    rows, category_of = [], torch.from_numpy(EmojiWorld("val").category_of)
    for style in STYLES:
        profiles, shown = _profiles(model, style, range(n, 2 * n), token)
        own = category_of[shown]
        shuffled = [own[torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))] for seed in range(20)]
        for site, profile in zip(find_sites(model)[find_site(model).kind], profiles, strict=True):
            profile = profile[shown][:, profile[shown].std(0) > 0]
            rows += [{"layer": site.layer, "style": style, "categories": name,
                      **mean_of(100 * torch.stack([variance_explained(profile, labels) for labels in every]).mean(0))}
                     for name, every in (("own", [own]), ("shuffled", shuffled))]
    rows.sort(key=lambda row: row["layer"])
    return Result(f"{model.title}: concept profiles explained by category ({TOKENS[token]}, {n:,} scenes a style)",
                  "concept profile explained by category (%)", rows)


def _profiles(model: VisionModel, style: str, numbers: range, token: str = "patches") -> tuple[list[torch.Tensor], torch.Tensor]:
    """Mean activations for each concept (concepts, units), a layer each, over scenes in one style; and which were shown."""
    world, both = EmojiWorld("val", styles=(style,), size=model.image_size), _has_cls(model, None)
    read = "both" if both else token  # from one pass over the scenes

    def measure() -> dict[str, np.ndarray]:
        batches = in_random_contexts(model, world, numbers, style, lambda scenes: {"concept": scenes.concept.cpu()})
        sums = [of_layer["concept"] for of_layer in sums_by_fact(model, None, batches, len(world.concepts), read)]
        means = [(total.sums / total.count.clamp_min(1)[:, None]).float().numpy() for total in sums]
        split = {f"mean{i} {of}": part for i, mean in enumerate(means)
                 for of, part in zip(TOKENS, np.split(mean, 2, axis=1) if both else [mean], strict=False)}
        return split | {"count": sums[0].count.numpy()}

    sites = find_sites(model)[find_site(model).kind]
    shapes = {f"mean{i} {of}": (len(world.concepts), site.units) for i, site in enumerate(sites)
              for of in (TOKENS if both else ["patches"])}
    key = {"profiles": style, "numbers": [numbers.start, numbers.stop], "tokens": read}
    stored = cache.made(model, key, "explained", measure, shapes | {"count": (len(world.concepts),)})
    count = torch.from_numpy(stored["count"])
    return [torch.from_numpy(stored[name]) for name in shapes if name.endswith(token)], count > 0


def _has_text(model: VisionModel) -> None:
    if not model.text:
        raise VitvizError(f"{model.name} has no text tower, so no caption can be compared with an image; take emoji-clip.")


def image_embeddings(model: VisionModel, images: torch.Tensor) -> torch.Tensor:
    """Embeddings (N, width) of length 1 of images (N, 3, S, S) in [0, 1], in the space of ``model.text(captions)``."""
    _has_text(model)
    validate.images("Images", images, (3, model.image_size, model.image_size))
    with torch.inference_mode():
        parts = [model.forward(model.normalize(part.to(model.device))) for part in images.split(AT_ONCE)]
    release_memory()
    return F.normalize(torch.cat(parts).float(), dim=-1)


def caption_matching(model: VisionModel, n: int = 240) -> Result:
    """Accuracy of choosing a scene's caption, by cosine similarity, among captions that differ in one fact; in the control, by
    the image of another scene. Of each fact ``n`` scenes are shown, equally many of each value.
    """
    _has_text(model)
    validate.whole("n", n, 2 * len(CONTEXTS), 10_000)  # two scenes of each context
    world, rows = default_world(model), []
    values = {"count": COUNTS, "size": range(len(SIZES)), "rotation": range(len(ROTATIONS)), "style": range(len(world.styles)),
              "position": range(len(POSITIONS)), "context": range(len(CONTEXTS))}
    candidates = range(40 * n)
    known = world.facts(np.array(candidates)) | {"context": random_contexts(candidates)}
    for fact, of in values.items():
        numbers = np.concatenate([np.flatnonzero(known[fact] == value)[:n // len(of)] for value in of])
        parts = []
        for part in np.split(numbers, range(AT_ONCE, len(numbers), AT_ONCE)):
            scenes = world.batch(part, model.device, contexts=random_contexts(part))
            captions = [replace(scenes, **{fact: torch.full_like(scenes.concept, value)}).captions for value in of]
            with torch.inference_mode():
                texts = torch.stack([model.text(of_value) for of_value in captions], 1)
            parts.append((image_embeddings(model, scenes.images), texts, getattr(scenes, fact) - of[0]))
        seen, texts, own = (torch.cat(part) for part in zip(*parts, strict=True))
        for whose, embeddings in (("its own image", seen), ("another scene's image", seen[derangement(len(seen), 0)])):
            hits = ((texts * embeddings[:, None]).sum(-1).argmax(1) == own).sum()
            rows.append({"captions differ in": fact, "nearest to": whose, **proportion(hits, len(seen))})
    return Result(f"{model.title}: choosing among captions that differ in one fact", "accuracy (%)", rows)


def random_contexts(numbers) -> np.ndarray:
    """A context for each scene, sampled uniformly from all twelve: fixed by its number, whatever batch it is in."""
    return np.array([np.random.default_rng(int(i)).integers(len(CONTEXTS)) for i in numbers])


def scene_facts(scenes: Scenes) -> dict[str, torch.Tensor]:
    """Each of ``FACTS`` as a number a scene, int64 (N,)."""
    return {name: (mean_colors(scenes.images, scenes.masks) if name == "color" else getattr(scenes, name)).cpu()
            for name in FACTS}


def mean_colors(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The mean color inside each mask as one of 11 classes: black, gray, white, or one of eight hues; int64 (N,)."""
    weight = masks[:, None].clamp_min(1e-6)
    red, green, blue = ((images * weight).sum((2, 3)) / weight.sum((2, 3))).unbind(1)
    high, low = torch.stack([red, green, blue]).amax(0), torch.stack([red, green, blue]).amin(0)
    angle = torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue)
    hue = 3 + (angle / (2 * torch.pi) * 8).round().long().remainder(8)
    gray = (high + low).mul(1.5).long().clamp(0, 2)
    return torch.where(high - low < 0.12, gray, hue)


def _given(image_set: ImageSet, facts: dict[str, list] | None) -> dict[str, torch.Tensor]:
    """Facts of images that are not scenes, as class numbers."""
    if facts is None:
        return {"class": image_set.class_of(range(image_set.n))}
    labels, wanted = {}, f"facts has {image_set.n} values, one for each image, under each name, such as {{'day': ['Monday', …]}}"
    if not isinstance(facts, dict) or not facts:
        raise VitvizError(f"{wanted}; got {validate.shown(facts)}.")
    for name, values in facts.items():
        try:
            known = [validate.scalar(value) for value in values][:image_set.n]
            numbers = {value: i for i, value in enumerate(dict.fromkeys(known))}
        except TypeError:  # not several, or values that cannot be compared
            known = []
        if len(known) < image_set.n:
            raise VitvizError(f"{wanted}; {name!r} has {len(known) or validate.shown(values)}.")
        labels[name] = torch.tensor([numbers[value] for value in known])
    return labels
