"""Checks of notebook 07, Finding: frequency."""

from ...experiments.frequency import CUTOFF, accuracy_by_cutoff, filtered, hybrid
from ...plotting.prediction_bars import predict
from ...utils import validate
from ...utils.errors import VitvizError
from . import close, color_world, parts, verdict


def exercise_1(answer, model):
    """The smallest measured cutoff of a low-pass that leaves half of the accuracy or more."""
    curve = accuracy_by_cutoff(model, color_world(model), n=512).where(measure="top-1").table.set_index(CUTOFF)["value"]
    cutoff = validate.whole("A cutoff", answer, 1, int(curve.index[-1]))
    if cutoff not in curve.index:
        raise VitvizError(f"Cutoffs are {', '.join(map(str, curve.index))}; got {cutoff}.")
    first = curve[curve >= curve.iloc[-1] / 2].index[0]
    return verdict(cutoff == first, f"up to {cutoff} cycles per image the accuracy is {curve[cutoff]:.1f} %, of whole images "
                   f"{curve.iloc[-1]:.1f} %", "look for the first with half or more")


def exercise_2(answer, model):
    """Two scenes and a cutoff of 12 or less: the model names the low-passed one, though it recognizes the other one too."""
    *scenes, cutoff = parts(answer, (0, 1, 8))
    scenes = [validate.whole("A scene", scene, 0, 10_000) for scene in scenes]
    cutoff, world = validate.whole("A cutoff", cutoff, 0, model.image_size // 2), color_world(model)
    drawn = world.batch(scenes)
    low, high = (world.concepts[i] for i in drawn.concept)
    if low == high:
        return False, f"both scenes show {low}; take two concepts."
    mixed = hybrid(drawn.images[:1], drawn.images[1:], cutoff)
    labels = [prediction.label for images in (drawn.images, mixed) for prediction in predict(model, images, low)]
    measured = f"{low} and {high} are called {labels[0]} and {labels[1]}, the hybrid {labels[2]}"
    if cutoff > 12:
        return False, f"{measured}; but up to {cutoff} cycles per image is nearly everything: take 12 at most."
    return verdict(labels == [low, high, low], measured, f"wanted are {low} and {high}, and {low} of the hybrid")


def exercise_3(answer, model):
    """Percentage of scenes' variance above 8 cycles per image, within 3."""
    number, images = validate.real("A number of percent", answer, -100, 100), color_world(model).batch(range(256)).images
    high, both = ((part - part.mean((2, 3), keepdim=True)).square().sum() for part in (filtered(images, 8, "high"), images))
    share = 100 * (high / both).item()
    return close(number, share, 3, f"it is {share:.1f} %", "Compare the variance of high-passed scenes with that of whole ones")
