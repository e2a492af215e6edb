"""Checks of notebook 08, Finding: language supervision."""

import torch

from ...experiments.semantics import image_embeddings
from ...utils import validate
from ...utils.statistics import variance_explained
from . import called, close, color_world, implementation


def exercise_1(answer, model=None):
    """A function from activations (n,) and labels (n,) to the fraction of variance explained, ε²."""
    draw = torch.Generator().manual_seed(8)
    inputs = []
    for labels in (torch.tensor([0] * 9 + [2] * 3 + [5] * 4), torch.arange(48) % 12):
        means = torch.randn(12, generator=draw)
        inputs.append((means[labels] + torch.randn(len(labels), generator=draw), labels))

    def r_squared(values, labels):
        n, k = len(values), len(labels.unique())
        return 1 - (1 - explained(values, labels)) * (n - k) / (n - 1)

    def unweighted(values, labels):
        means = torch.stack([values[labels == label].mean() for label in labels.unique()])
        return means.var(correction=0) / values.var(correction=0)

    def explained(values, labels):
        return variance_explained(values[:, None], labels)[0]

    return implementation(answer, explained, inputs, {
        "that is R², which is above 0 for random labels too; divide the sum of squares within by n - k, the total by n - 1":
            r_squared,
        "the spread of the means counts a label with few images as much as one with many, and takes their noise for an effect":
            unweighted,
        "that is the fraction left unexplained; ε² is one minus it": lambda *given: 1 - explained(*given)})


@torch.inference_mode()
def exercise_2(answer, model):
    """Percentage of 256 scenes whose nearest of all 256 captions is their own, within 2."""
    number, world = validate.real("A number of percent", answer, -100, 100), color_world(model)
    embeddings = image_embeddings(model, world.batch(range(256)).images)
    match = (embeddings @ model.text(world.captions(range(256))).T).argmax(1).cpu()
    own = int((match == torch.arange(256)).sum())
    return close(number, own / 2.56, 2, f"{own} of 256 scenes are nearest to their own caption: {own / 2.56:.1f} %",
                 "Take the full captions, and for each scene the nearest of all 256")


def exercise_3(answer, model=None):
    """A function from pictures, words (N, 3, S, S) and masks (N, 1, S, S) to pictures covered as much, with nothing to read."""
    draw = torch.Generator().manual_seed(8)
    picture, word = torch.zeros(2, 3, 16, 16), 0.5 + torch.rand(2, 3, 16, 16, generator=draw) / 2
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, 3:6, 2:11], mask[0, :, 6:12, 2:4], mask[1, :, 6:9, 8:11] = 1, 1, 1
    attack = picture * (1 - mask) + word * mask
    if isinstance(found := called(answer, (picture, word, mask), attack.shape), str):
        return False, found
    found = found.float()
    if torch.allclose(found, attack):
        return False, "that is the word itself, which a model may read"
    covered = (found != 0).any(1).sum((1, 2)) / mask.sum((1, 2, 3))  # hidden pictures are black, ink is not
    if not ((covered > 0.9) & (covered < 1.1)).all():
        return False, f"it covers {100 * covered[0]:.0f} % of what the word covers; a control covers as much"
    if not torch.allclose(found.sum((2, 3)), attack.sum((2, 3)), 0.1):
        return False, "its ink has other colors than the word's, to which a model may respond"
    return True, "it covers as much of the picture, with the same ink, and is not the word."
