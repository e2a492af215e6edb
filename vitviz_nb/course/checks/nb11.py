"""Checks of notebook 11, Your own."""

from ...datasets.image_folder import ImageFolder, image_folder
from ...experiments.localization import token_similarity
from ...experiments.result import Result
from ...models.sites import find_site
from ...models.vision_model import VisionModel
from ...utils.errors import VitvizError, nearest
from ...utils.paths import data_dir
from ...visualize.rendering import Rendering
from ...visualize.top_images import top_images
from ..report import Report
from . import close, exercise, real, several, unsuitable, whole


@exercise("11.1")
def top_photograph(answer, model):
    """A neuron of the last layer, and the photograph of the kit that activates it most."""
    site, names = find_site(model), [path.stem for path in photographs(model).paths]
    what = "a neuron and a photograph, such as (376, 'cat')"
    number, name = several(answer, 2, what)
    if not isinstance(name, str):
        raise unsuitable(what, answer)
    neuron = whole(number, "a neuron", site.units - 1)
    if name not in names:
        raise VitvizError(f"No photograph is called {name!r}.{nearest(name, names)} There are {', '.join(names)}.")
    top = top_images(model, site.layer, neuron, site.kind, photographs(model), k=len(names))
    order = [names[i] for i in top.indices]
    right = name == order[0]
    return right, (f"{order[0]} activates neuron {neuron} most, then {order[1]} ({top.activations[0]:.2f} and "
                   f"{top.activations[1]:.2f})." if right else
                   f"{name} is number {order.index(name) + 1} of {len(order)} for neuron {neuron}.")


@exercise("11.2")
def similarity_on_photographs(answer, model):
    """Mean cosine similarity of the patch tokens of a photograph in the last layer, within 0.03."""
    number = real(answer, "a mean cosine similarity")
    last = token_similarity(model, photographs(model)).table.query("tokens == 'patches'").iloc[-1]
    return close(number, last["value"], 0.03, f"{last['value']:.2f} in layer {last['layer']} (95 % interval {last['low']:.2f} to "
                 f"{last['high']:.2f}, {last['n']} photographs)", "Take the last layer, patches, and only the photographs")


@exercise("11.3")
def own_report(answer, model):
    """A report of four items or more, with words on each; a rendering, a result, and one of words only."""
    if not isinstance(answer, Report):
        raise unsuitable("a report, made by vv.Report(folder, title)", answer)
    kinds = [type(item.shown) for item in answer.items]
    lacks = [f"four items (it has {len(kinds)})"] * (len(kinds) < 4)
    lacks += ["pictures (a Rendering)"] * (Rendering not in kinds) + ["a measurement (a Result)"] * (Result not in kinds)
    lacks += ["an item of words only, on what you could not show"] * (type(None) not in kinds)
    lacks += [f"words on {item.heading!r}" for item in answer.items if not item.text.strip()]
    return not lacks, (f"{len(kinds)} items with words on each, in {answer.page.name}. Whether they convince, others must say."
                       if not lacks else f"the report lacks {'; '.join(lacks)}.")


def photographs(model: VisionModel) -> ImageFolder:
    """The eight photographs of the kit, at a model's size."""
    return image_folder(data_dir() / "photos", model)
