"""Checks of notebook 09, Finding: families."""

import torch

from ...experiments.families import adversarially_trained, family
from ...models.cards import embedded_names, read_card
from ...utils import validate
from ...visualize.atlas import embedded, embedded_atlases
from . import implementation, parts, verdict

CAUSES = ("steps", "adversarial examples", "dense supervision")


def exercise_1(answer, model=None):
    """A function from x (n,) and y (n,) to the n correlations that leave one pair out."""
    draw, keep = torch.Generator().manual_seed(9), torch.arange(12)
    inputs = [(x, 0.5 * x + torch.randn(n, generator=draw)) for n in (6, 12) for x in [torch.randn(n, generator=draw)]]

    def r(x, y):
        return torch.corrcoef(torch.stack([x, y]))[0, 1]

    def left_out(x, y, of=r):
        return torch.stack([of(x[keep[:len(x)] != i], y[keep[:len(x)] != i]) for i in range(len(x))])

    def ranks(x, y):
        return r(x.argsort().argsort().float(), y.argsort().argsort().float())

    return implementation(answer, left_out, inputs, {
        "nothing is left out: that is the correlation of all, n times": lambda x, y: r(x, y).expand(len(x)),
        "that is the covariance; divide by both standard deviations":
            lambda x, y: left_out(x, y, lambda a, b: torch.cov(torch.stack([a, b]))[0, 1]),
        "that is the correlation of ranks (Spearman's), not Pearson's": lambda x, y: left_out(x, y, ranks)})


def exercise_2(answer, model):
    """A concept and units of two models, three or more of whose six top scenes show it."""
    concept, *units = parts(answer, ("lemon", ("emoji-vit", 0), ("emoji-pit-robust", 0)))
    counts, shown = {}, set()
    for name, number in (parts(unit, ("emoji-vit", 0)) for unit in units):
        table = embedded(validate.choice("A model with an atlas", name, embedded_atlases())).table()
        scenes = table[table["layer"] == table["layer"].max()].set_index("neuron")["scenes"]
        counts[name] = validate.whole(f"A neuron of {name}", number, 0, len(scenes) - 1), scenes[number].count(concept)
        shown.update(*scenes)
    validate.choice("A concept that top scenes show", concept, sorted(shown))
    if len(counts) < 2:
        return False, f"both neurons are of {units[0][0]}; take two families."
    measured = " and in ".join(f"{count} of the 6 of {name}'s neuron {number}" for name, (number, count) in counts.items())
    return verdict(all(count >= 3 for _, count in counts.values()), f"{concept} is in {measured}", "wanted are 3 or more in both")


def exercise_3(answer, model):
    """What ended positions in robust models, and a family that had the other causes without it."""
    cause, chosen = parts(answer, ("steps", "pit"))
    robust = {family(name): read_card(name)["recipe"] for name in embedded_names() if adversarially_trained(name)}
    cause, recipe = validate.choice("A cause", cause, CAUSES), robust[validate.choice("A family", chosen, robust)]
    if recipe["every_token"]:
        return False, f"{chosen} had all three in its robust training, so it cannot tell them apart."
    return verdict(cause == CAUSES[2], f"{chosen} had more steps and adversarial examples, without dense supervision, and "
                   f"kept its positions", f"so it was not {cause}")
