"""Checks of notebook 07, Finding: frequency."""

from ...experiments.frequency import CUTOFF, accuracy_by_cutoff, filtered, hybrid
from ...plotting.prediction_bars import predict
from ...utils import validate
from . import close, color_world, exercise, real, several, unsuitable, verdict, whole


@exercise("07.1")
def half_of_it(answer, model):
    """The smallest measured cutoff of a low-pass that leaves half of the accuracy or more."""
    curve = accuracy_by_cutoff(model, color_world(model), n=512).table.query("measure == 'top-1'").set_index(CUTOFF)["value"]
    cutoff = validate.scalar(answer)
    if isinstance(cutoff, bool | float) or cutoff not in list(curve.index):
        raise unsuitable(f"one of the cutoffs {', '.join(map(str, curve.index))}", answer)
    first = curve[curve >= curve.iloc[-1] / 2].index[0]
    return verdict(cutoff == first, f"up to {cutoff} cycles per image the accuracy is {curve[cutoff]:.1f} %, of whole images "
                   f"{curve.iloc[-1]:.1f} %", "look for the first with half or more")


@exercise("07.2")
def hybrid_fools(answer, model):
    """Two scenes and a cutoff of 12 or less: the model names the low-passed one, though it recognizes the other one too."""
    first, second, third = several(answer, 3, "two scenes and a cutoff, such as (0, 1, 8)")
    low, high = (whole(number, "a scene", 10_000) for number in (first, second))
    cutoff, world = whole(third, "a cutoff", model.image_size // 2), color_world(model)
    scenes = world.batch([low, high])
    names = [world.concepts[i] for i in scenes.concept]
    if names[0] == names[1]:
        return False, f"both scenes show {names[0]}; take two concepts."
    mixed = hybrid(scenes.images[:1], scenes.images[1:], cutoff)
    separate, together = (predict(model, images, names[0]) for images in (scenes.images, mixed))
    answers = (separate[0].label, separate[1].label, together[0].label)
    measured = f"{names[0]} and {names[1]} are called {answers[0]} and {answers[1]}, the hybrid {answers[2]}"
    if cutoff > 12:
        return False, f"{measured}; but up to {cutoff} cycles per image is nearly everything: take 12 at most."
    return verdict(answers == (*names, names[0]), measured, f"wanted are {names[0]} and {names[1]}, and {names[0]} of the hybrid")


@exercise("07.3")
def share_beyond(answer, model):
    """Percentage of scenes' variance above 8 cycles per image, within 3."""
    number, images = real(answer, "a number of percent"), color_world(model).batch(range(256)).images
    high, both = ((part - part.mean((2, 3), keepdim=True)).square().sum() for part in (filtered(images, 8, "high"), images))
    share = 100 * (high / both).item()
    return close(number, share, 3, f"it is {share:.1f} %", "Compare the variance of high-passed scenes with that of whole ones")
