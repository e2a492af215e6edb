"""Measure what captions teach that labels do not: emoji-clip beside emoji-vit-deep, also on concepts that neither was trained on.

    python data/models/language.py

Prints the rows of this folder's README, section "Captions and labels". About five minutes of a CPU core.
"""

import numpy as np
import torch

import vitviz_nb as vv
from vitviz_nb.datasets.emoji_world import STYLES, EmojiWorld
from vitviz_nb.experiments.semantics import image_embeddings, in_random_contexts
from vitviz_nb.models.reading import each_layer
from vitviz_nb.models.text_tower import class_embeddings, split
from vitviz_nb.training.captions import HYPERNYMS

N, SPLITS = 3008, 10  # scenes of each set of concepts; ways to divide the trained concepts in two
MODELS = {"captions": vv.load("emoji-clip"), "labels": vv.load("emoji-vit-deep")}
CLIP = MODELS["captions"]


def see(world: EmojiWorld) -> dict[str, torch.Tensor]:
    """Of N scenes the concept, CLIP's embedding, and for each model the class it predicts and its last layer at both tokens."""
    parts: dict[str, list] = {}
    for images, facts in in_random_contexts(CLIP, world, range(N), "images", lambda scenes: {"concept": scenes.concept}):
        seen = {"concept": facts["concept"], "embedding": image_embeddings(CLIP, images)}
        for name, model in MODELS.items():
            with torch.inference_mode():
                seen[name] = model(images).argmax(1)
            both = each_layer(model, None, images, lambda site, x: torch.stack([x[:, 0], x[:, 1:].mean(1)]), prefix=True)[-1]
            seen |= {f"{name}, CLS token": both[0], f"{name}, patch tokens": both[1]}
        for key, value in seen.items():
            parts.setdefault(key, []).append(value)
    return {key: torch.cat(values) for key, values in parts.items()}


def named(names: list[str]) -> torch.Tensor:
    """Text embeddings of names, averaged over prompts: (names, width)."""
    return class_embeddings(CLIP.text, names, STYLES[:3])


def show(label: str, hits, concept, group=None) -> None:
    """Print percent correct, of each ``group`` alone and then averaged if given; interval: bootstrap over concepts."""
    hits, concept = np.asarray(hits, float), np.asarray(concept)
    group = np.zeros(len(hits), int) if group is None else np.unique(group, return_inverse=True)[1]
    ids, number = np.unique(concept, return_inverse=True)
    correct, count = (np.bincount(number * (group.max() + 1) + group, weights, len(ids) * (group.max() + 1)).reshape(len(ids), -1)
                      for weights in (hits, None))

    def value(chosen) -> float:
        return 100 * (correct[chosen].sum(0) / count[chosen].sum(0)).mean()

    dice = np.random.default_rng(0)
    low, high = np.percentile([value(dice.integers(len(ids), size=len(ids))) for _ in range(2000)], [2.5, 97.5])
    print(f"| {label} | {value(slice(None)):.1f} ({low:.1f} to {high:.1f}) | {len(hits):,} scenes of {len(ids)} concepts |")


def auc(values: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Probability that a column of ``values`` (N, units) is higher where ``own`` (N,) than elsewhere: (units,)."""
    ranks, n = values.argsort(0).argsort(0).double() + 1, int(own.sum())  # activations are hardly ever equal
    return (ranks[own].sum(0) - n * (n + 1) / 2) / (n * (len(own) - n))


def tables(worlds: dict[str, EmojiWorld], seen: dict[str, dict[str, torch.Tensor]]) -> None:
    category = {concepts: np.array([world.categories[i] for i in world.category_of]) for concepts, world in worlds.items()}
    words, trained = np.array(sorted(set(category["trained"]))), worlds["trained"].concepts
    for concepts, world in worlds.items():
        found, of = seen[concepts], seen[concepts]["concept"]
        own = category[concepts][of]
        near = found["embedding"] @ named([HYPERNYMS[word] for word in words]).T
        show(f"{concepts}: category, by its word", words[near.argmax(1)] == own, of, own)
        for name in MODELS:
            show(f"{concepts}: category, of the concept predicted, {name}", category["trained"][found[name]] == own, of, own)
        known = [i for i, concept in enumerate(world.concepts) if set(split(concept)) <= set(CLIP.text.words)]
        there, number = torch.isin(of, torch.tensor(known)), {i: k for k, i in enumerate(known)}
        truth = torch.tensor([number[i] for i in of[there].tolist()])
        names = named([world.concepts[i] for i in known])
        ways = {"captions": found["embedding"][there] @ names.T,
                "labels: name most like that of the concept predicted": named(trained)[found["labels"][there]] @ names.T}
        if concepts == "unseen":
            alike = [i for i in known if set(split(world.concepts[i])) & {word for name in trained for word in split(name)}]
            print(f"{len(alike)} of these {len(known)} names share a word with a trained name")
        for name, near in ways.items():
            show(f"{concepts}: name, of {len(known)}, {name}", near.argmax(1) == truth, of[there])
        show(f"{concepts}: control, another scene's name", ways["captions"].argmax(1) == truth.roll(1), of[there])

    for token in ("CLS token", "patch tokens"):
        for name in MODELS:
            scores: dict[str, list] = {"other concepts": [], "unseen concepts": [], "shuffled categories": []}
            values, of = (seen["trained"][key] for key in (f"{name}, {token}", "concept"))
            new, own_new = seen["unseen"][f"{name}, {token}"], category["unseen"][seen["unseen"]["concept"]]
            for number in range(SPLITS):
                order, other = (torch.randperm(256, generator=torch.Generator().manual_seed(k)) for k in (number, 100 + number))
                chosen_on, shuffled = torch.isin(of, order[:128]), category["trained"][other]
                for word in words:
                    for kind, labels in {"other concepts": category["trained"], "shuffled categories": shuffled}.items():
                        own = torch.from_numpy(labels == word)[of]
                        best = auc(values[chosen_on], own[chosen_on]).argmax()
                        scores[kind].append(auc(values[~chosen_on][:, [best]], own[~chosen_on]).item())
                        if kind == "other concepts":
                            scores["unseen concepts"].append(auc(new[:, [best]], torch.from_numpy(own_new == word)).item())
            means = {kind: np.reshape(each, (SPLITS, -1)).mean(1) for kind, each in scores.items()}
            print(f"| {name}, {token} |", *(f"{m.mean():.2f} ({m.min():.2f} to {m.max():.2f}) |" for m in means.values()))


if __name__ == "__main__":
    both = {concepts: EmojiWorld("val", concepts, STYLES[:3]) for concepts in ("trained", "unseen")}
    tables(both, {concepts: see(world) for concepts, world in both.items()})
