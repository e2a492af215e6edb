"""Checks of notebook 09, Finding: families."""

import pandas as pd

from ...experiments.families import stored
from ...utils import validate
from ...utils.errors import VitvizError
from ...visualize.atlas import embedded, embedded_atlases
from . import exercise, one_of, real, several, unsuitable, verdict, whole

STAYS, ACCURACY, CUTOFF = ("a perturbation stays at its position, last layer", "accuracy on whole scenes",
                           "low-pass cutoff that leaves 90 % of it")  # rows of data/families.csv


@exercise("09.1")
def most_local(answer, model):
    """The embedded model in whose last layer most of a perturbation stays at its position."""
    values = _of_families(STAYS)
    one_of(answer, f"one of the models {', '.join(values.index)}", values.index)
    most = answer == values.idxmax()
    return most, f"in {answer} {values[answer]:.1f} % stay, {'more than in any other' if most else 'in another model more'}."


@exercise("09.2")
def same_concept_twice(answer, model):
    """A concept and units of two models, three or more of whose six top scenes show it."""
    what = "a concept and two units, such as ('lemon', ('emoji-vit', 0), ('emoji-pit-robust', 0))"
    concept, *units = several(answer, 3, what)
    if not all(isinstance(unit, tuple | list) and len(unit) == 2 and isinstance(unit[0], str) for unit in units):
        raise unsuitable(what, answer)
    counts, shown, numbers = [], set(), []
    for name, number in units:
        atlas = embedded(name)
        if atlas is None:
            raise VitvizError(f"No atlas of {name!r} comes with the kit; there is one of each of "
                              f"{', '.join(embedded_atlases())}.")
        scenes = atlas.table().query("layer == layer.max()").set_index("neuron")["scenes"]
        numbers.append(whole(number, f"a neuron of {name}", len(scenes) - 1))
        counts.append(scenes[numbers[-1]].count(concept))
        shown.update(*scenes)
    one_of(concept, f"a concept that some unit's scenes show; none shows {validate.shown(concept)}", shown)
    if units[0][0] == units[1][0]:
        return False, f"both units are of {units[0][0]}; take two families."
    measured = " and in ".join(f"{count} of the 6 of {name}'s unit {number}"
                               for count, (name, _), number in zip(counts, units, numbers, strict=True))
    return verdict(min(counts) >= 3, f"{concept} is in {measured}", "wanted are 3 or more in both")


@exercise("09.3")
def leave_one_out(answer, model):
    """The least and greatest correlation of accuracy and cutoff needed, leaving one model out, within 0.02."""
    what = "two correlations, such as (-0.1, 0.5)"
    low, high = (real(value, what) for value in several(answer, 2, what))
    accuracy, cutoff = _of_families(ACCURACY), _of_families(CUTOFF)
    without = [accuracy.drop(name).corr(cutoff.drop(name)) for name in accuracy.index]
    near = max(abs(low - min(without)), abs(high - max(without))) <= 0.02
    return near, (f"it is {min(without):.2f} to {max(without):.2f}; with all models {accuracy.corr(cutoff):.2f}." if near else
                  "one is more than 0.02 off. Leave out each model once; take the least and the greatest.")


def _of_families(what: str) -> pd.Series:
    """The stored value of each embedded model that has this number."""
    table = stored()
    return table[table["what"] == what].set_index("model")["value"]
