"""Checks of notebook 11, Your own."""

from ...datasets.image_folder import ImageFolder, image_folder
from ...experiments.localization import token_similarity
from ...experiments.result import Result
from ...models.sites import find_site
from ...models.vision_model import VisionModel
from ...utils import validate
from ...utils.errors import VitvizError
from ...utils.paths import data_dir
from ...visualize.rendering import Rendering
from ...visualize.top_images import top_images
from ..report import Report
from . import close, parts


def exercise_1(answer, model):
    """A neuron of the last layer, and the photograph of the kit that activates it most."""
    (neuron, name), site, names = parts(answer, (376, "cat")), find_site(model), [p.stem for p in photographs(model).paths]
    neuron = validate.whole("A neuron", neuron, 0, site.units - 1)
    validate.choice("A photograph", name, names)
    top = top_images(model, site.layer, neuron, site.kind, photographs(model), k=len(names))
    order, (first, second, *_) = [names[i] for i in top.indices], top.activations
    return name == order[0], (f"{name} activates neuron {neuron} most, then {order[1]} ({first:.2f} and {second:.2f})."
                              if name == order[0] else
                              f"{name} is number {order.index(name) + 1} of {len(order)} for neuron {neuron}.")


def exercise_2(answer, model):
    """Mean cosine similarity of the patch tokens of a photograph in the last layer, within 0.03."""
    number = validate.real("A mean cosine similarity", answer, -1, 1)
    last = token_similarity(model, photographs(model)).where(tokens="patches").table.iloc[-1]
    return close(number, last["value"], 0.03, f"{last['value']:.2f} in layer {last['layer']:.0f} (95 % interval "
                 f"{last['low']:.2f} to {last['high']:.2f}, {last['n']:.0f} photographs)",
                 "Take the last layer, patches, and only the photographs")


def exercise_3(answer, model):
    """A report of four items or more, with words on each; a rendering, a result, and one of words only."""
    if not isinstance(answer, Report):
        raise VitvizError(f"The answer is a report, made by vv.Report(folder, title); got {validate.shown(answer)}.")
    kinds = [type(item.shown) for item in answer.items]
    lacks = [f"four items (it has {len(kinds)})"] * (len(kinds) < 4)
    lacks += ["pictures (a Rendering)"] * (Rendering not in kinds) + ["a measurement (a Result)"] * (Result not in kinds)
    lacks += ["an item of words only, on what you could not show"] * (type(None) not in kinds)
    lacks += [f"words on {item.heading!r}" for item in answer.items if not item.text.strip()]
    return not lacks, (f"the report lacks {'; '.join(lacks)}." if lacks else
                       f"{len(kinds)} items with words on each, in {answer.page.name}. Whether they convince, others must say.")


def photographs(model: VisionModel) -> ImageFolder:
    """The eight photographs of the kit, at a model's size."""
    return image_folder(data_dir() / "photos", model)
