"""Checks of notebook 09, Finding: families."""

import pandas as pd

from ...experiments.families import stored
from ...utils import validate
from ...visualize.atlas import embedded, embedded_atlases
from . import parts, verdict

STAYS, ACCURACY, CUTOFF = ("a perturbation stays at its position, last layer", "accuracy on whole scenes",
                           "low-pass cutoff that leaves 90 % of it")  # rows of data/families.csv


def exercise_1(answer, model):
    """The embedded model in whose last layer most of a perturbation stays at its position."""
    values = _of_families(STAYS)
    most = validate.choice("A model", answer, values.index) == values.idxmax()
    return most, f"in {answer} {values[answer]:.1f} % stay, {'more than in any other' if most else 'in another model more'}."


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
        return False, f"both units are of {units[0][0]}; take two families."
    measured = " and in ".join(f"{count} of the 6 of {name}'s unit {number}" for name, (number, count) in counts.items())
    return verdict(all(count >= 3 for _, count in counts.values()), f"{concept} is in {measured}", "wanted are 3 or more in both")


def exercise_3(answer, model):
    """The least and greatest correlation of accuracy and cutoff needed, leaving one model out, within 0.02."""
    low, high = (validate.real("A correlation", value, -1, 1) for value in parts(answer, (-0.1, 0.5)))
    accuracy, cutoff = _of_families(ACCURACY), _of_families(CUTOFF)
    without = [accuracy.drop(name).corr(cutoff.drop(name)) for name in accuracy.index]
    near = max(abs(low - min(without)), abs(high - max(without))) <= 0.02
    return near, (f"it is {min(without):.2f} to {max(without):.2f}; with all models {accuracy.corr(cutoff):.2f}." if near else
                  "one is more than 0.02 off. Leave out each model once; take the least and the greatest.")


def _of_families(what: str) -> pd.Series:
    """The stored value of each embedded model that has this number."""
    table = stored()
    return table[table["what"] == what].set_index("model")["value"]
