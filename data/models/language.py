"""Measure what captions teach that labels do not: emoji-clip beside emoji-vit-deep, on concepts of no caption and no label.

    python data/models/language.py

Prints the two tables of this folder's README, section "Captions and labels". About five minutes of a CPU core.
"""

import numpy as np
import torch

import vitviz_nb as vv
from vitviz_nb.datasets.emoji_world import STYLES, EmojiWorld
from vitviz_nb.experiments.result import proportion
from vitviz_nb.experiments.semantics import image_embeddings, in_random_contexts
from vitviz_nb.models.reading import each_layer
from vitviz_nb.models.text_tower import class_embeddings, split
from vitviz_nb.training.captions import HYPERNYMS

N, SPLITS = 3008, 10  # scenes of each set of concepts; ways to divide the trained concepts in two
MODELS = {"captions": vv.load("emoji-clip"), "labels": vv.load("emoji-vit-deep")}
CLIP = MODELS["captions"]


def see(world: EmojiWorld) -> dict[str, torch.Tensor]:
    """Concepts (N,), CLIP's embeddings, each model's logits, and its last layer at CLS and averaged over patches, (N, units)."""
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


def auc(values: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Probability that a column of ``values`` (N, units) is higher where ``own`` (N,) than elsewhere: (units,)."""
    ranks, n = values.argsort(0).argsort(0).double() + 1, int(own.sum())
    return (ranks[own].sum(0) - n * (n + 1) / 2) / (n * (len(own) - n))


def show(label: str, hits: torch.Tensor) -> None:
    print("| {} | {value:.1f} ({low:.1f} to {high:.1f}) | {n:,} |".format(label, **proportion(hits.sum(), len(hits))))


worlds = {concepts: EmojiWorld("val", concepts, STYLES[:3]) for concepts in ("trained", "unseen")}
seen = {concepts: see(world) for concepts, world in worlds.items()}
category = {concepts: np.array([world.categories[i] for i in world.category_of]) for concepts, world in worlds.items()}
words = sorted(set(category["trained"]))
for concepts, world in worlds.items():
    found, of = seen[concepts], seen[concepts]["concept"]
    own = category[concepts][of]
    show(f"{concepts}: category, always the commonest", torch.from_numpy(own == max(words, key=list(own).count)))
    near = found["embedding"] @ class_embeddings(CLIP.text, [HYPERNYMS[word] for word in words], STYLES[:3]).T
    show(f"{concepts}: category, by its word", torch.from_numpy(np.array(words)[near.argmax(1)] == own))
    for name in MODELS:
        show(f"{concepts}: category, of the concept predicted, {name}", torch.from_numpy(category["trained"][found[name]] == own))
    known = [i for i, concept in enumerate(world.concepts) if set(split(concept)) <= set(CLIP.text.words)]
    named, number = torch.isin(of, torch.tensor(known)), {i: k for k, i in enumerate(known)}
    near = found["embedding"][named] @ class_embeddings(CLIP.text, [world.concepts[i] for i in known], STYLES[:3]).T
    truth = torch.tensor([number[i] for i in of[named].tolist()])
    show(f"{concepts}: name, among the {len(known)} of which it knows all words", near.argmax(1) == truth)
    show(f"{concepts}: control, the name of another scene's concept", near.argmax(1) == truth.roll(1))

for token in ("CLS token", "patch tokens"):
    for name in MODELS:
        scores: dict[str, list] = {"other concepts": [], "unseen concepts": [], "shuffled categories": []}
        values, of = (seen["trained"][key] for key in (f"{name}, {token}", "concept"))
        new, own_new = seen["unseen"][f"{name}, {token}"], category["unseen"][seen["unseen"]["concept"]]
        for split_number in range(SPLITS):
            order = torch.randperm(256, generator=torch.Generator().manual_seed(split_number))
            chosen_on, shuffled = torch.isin(of, order[:128]), category["trained"][order]
            for word in words:
                for kind, labels in {"other concepts": category["trained"], "shuffled categories": shuffled}.items():
                    own = torch.from_numpy(labels == word)[of]
                    best = auc(values[chosen_on], own[chosen_on]).argmax()
                    scores[kind].append(auc(values[~chosen_on][:, [best]], own[~chosen_on]).item())
                    if kind == "other concepts":
                        scores["unseen concepts"].append(auc(new[:, [best]], torch.from_numpy(own_new == word)).item())
        means = {kind: np.reshape(all_, (SPLITS, -1)).mean(1) for kind, all_ in scores.items()}
        print(f"| {name}, {token} | " + " | ".join(f"{m.mean():.2f} ({m.min():.2f} to {m.max():.2f})" for m in means.values()))
