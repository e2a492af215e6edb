"""Checks of the exercises of notebooks 06 to 11; ``exercises.check`` calls them."""

from collections.abc import Callable
from numbers import Integral, Real

import numpy as np
import pandas as pd
import torch

from ..datasets.backgrounds import CONTEXTS
from ..datasets.emoji_world import STYLES, EmojiWorld
from ..datasets.image_folder import ImageFolder, image_folder
from ..experiments.background import context_chance, context_selectivity
from ..experiments.faithfulness import recognition, selectivity
from ..experiments.families import stored
from ..experiments.fooling_circuit import FoolingCircuit
from ..experiments.frequency import CUTOFF, accuracy_by_cutoff, filtered, hybrid
from ..experiments.localization import token_similarity
from ..experiments.result import Result
from ..experiments.semantics import image_embeddings, variance_by_fact
from ..models.loading import load
from ..models.sites import find_sites
from ..models.vision_model import VisionModel
from ..plotting.prediction_bars import predict
from ..utils.errors import VitvizError, nearest
from ..utils.paths import data_dir
from ..utils.statistics import wilson
from ..visualize.atlas import embedded, embedded_atlases
from ..visualize.rendering import Rendering
from ..visualize.top_images import top_images
from ..visualize.visualizer import Visualizer
from ..widgets.two_alternative import TaskWidget
from .report import Report


def whole_number(exercise: str, answer, what: str, most: int) -> int:
    """The answer, a whole number from 0 to ``most``; VitvizError if it is none."""
    if isinstance(answer, bool) or not isinstance(answer, Integral) or not 0 <= answer <= most:
        raise VitvizError(f"Exercise {exercise} wants {what}, 0 to {most}, got {answer!r}.")
    return int(answer)


def _guessing_by_context(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 06.1: right answers in percent of the best guess that knows the context alone, within 0.2."""
    if isinstance(answer, bool) or not isinstance(answer, Real):
        raise VitvizError(f"Exercise 06.1 wants a number of percent, got {answer!r}.")
    best = context_chance(_pictured(model))["top-1"]
    near = abs(answer - best) <= 0.2
    return near, (f"{best:.2f} %: in each context the best guess is one of the concepts at home there." if near else
                  "your number is more than 0.2 off. How often does one concept stand in its usual context, of all scenes?")


def _out_of_place(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 06.2: a scene, and a context it is not usually in, where the model is wrong about what it knows at home."""
    if not isinstance(answer, tuple) or len(answer) != 2 or answer[1] not in CONTEXTS:
        raise VitvizError(f"Exercise 06.2 wants a scene and a context, such as (0, 'snow'), got {answer!r}; contexts are "
                          f"{', '.join(CONTEXTS)}.")
    scene, world, there = whole_number("06.2", answer[0], "a scene", 10_000), _pictured(model), CONTEXTS.index(answer[1])
    concept = world.facts(np.array([scene]))["concept"][0]
    home, name = world.usual_context[concept], world.concepts[concept]
    if there == home:
        return False, f"{CONTEXTS[home]} is where {name} usually stands; put it elsewhere."
    images = torch.cat([world.batch([scene], contexts=[context]).images for context in (home, there)])
    at_home, elsewhere = predict(model, images, name)
    said = f"on {CONTEXTS[home]} {name} is called {at_home.label}, on {CONTEXTS[there]} {elsewhere.label}"
    if at_home.rank > 1:
        return False, f"{said}; it must be right at home first."
    return elsewhere.rank > 1, f"{said}." if elsewhere.rank > 1 else f"{said}; it does not mind."


def _context_unit(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 06.3: a layer, a neuron of it, and the context that it answers to by at least 1.5 standard deviations."""
    if not isinstance(answer, tuple) or len(answer) != 3 or answer[2] not in CONTEXTS:
        raise VitvizError(f"Exercise 06.3 wants a layer, a neuron and a context, such as (0, 0, 'snow'), got {answer!r}; "
                          f"contexts are {', '.join(CONTEXTS)}.")
    found = context_selectivity(model, _pictured(model))
    layer = whole_number("06.3", answer[0], "a layer", len(found) - 1)
    neuron = whole_number("06.3", answer[1], "a neuron", found[layer].shape[1] - 1)
    best = found[layer][:, neuron].argmax().item()
    value = found[layer][best, neuron].item()
    said = f"neuron {neuron} of layer {layer} answers most to {CONTEXTS[best]}, by {value:.2f} standard deviations"
    right = CONTEXTS[best] == answer[2] and value >= 1.5
    return right, f"{said}." if right else f"{said}; wanted are the right name and at least 1.5."


def _half_of_it(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 07.1: the smallest measured radius of a low-pass that leaves half of the right answers or more."""
    curve = accuracy_by_cutoff(model, _pictured(model), n=512).table.query("measure == 'top-1'").set_index(CUTOFF)["value"]
    if isinstance(answer, bool) or not isinstance(answer, Integral) or answer not in curve.index:
        raise VitvizError(f"Exercise 07.1 wants one of the radii {', '.join(map(str, curve.index))}, got {answer!r}.")
    enough = curve[curve >= curve.iloc[-1] / 2].index[0]
    return bool(answer == enough), f"up to {answer} cycles a side {curve[answer]:.1f} % are right, of whole images " \
                                   f"{curve.iloc[-1]:.1f} %" + ("." if answer == enough else "; look for the first half or more.")


def _hybrid_fools(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 07.2: two scenes and a radius of 12 or less: the model names the coarse one, though it knows the fine one too."""
    if not isinstance(answer, tuple) or len(answer) != 3:
        raise VitvizError(f"Exercise 07.2 wants two scenes and a radius, such as (0, 1, 8), got {answer!r}.")
    coarse, fine = (whole_number("07.2", number, "a scene", 10_000) for number in answer[:2])
    radius, world = whole_number("07.2", answer[2], "a radius", model.image_size // 2), _pictured(model)
    scenes = world.batch([coarse, fine])
    names = [world.concepts[i] for i in scenes.concept]
    if names[0] == names[1]:
        return False, f"both scenes show {names[0]}; take two concepts."
    mixed = hybrid(scenes.images[:1], scenes.images[1:], radius)
    alone, together = (predict(model, images, names[0]) for images in (scenes.images, mixed))
    said = f"{names[0]} and {names[1]} are called {alone[0].label} and {alone[1].label}, the hybrid {together[0].label}"
    if radius > 12:
        return False, f"{said}; but up to {radius} cycles a side nearly everything is coarse: take 12 at most."
    right = (alone[0].label, alone[1].label, together[0].label) == (*names, names[0])
    return right, f"{said}." if right else f"{said}; wanted are {names[0]} and {names[1]}, and {names[0]} of the hybrid."


def _share_beyond(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 07.3: percent of scenes' variance in waves of more than 8 cycles a side, within 3."""
    if isinstance(answer, bool) or not isinstance(answer, Real):
        raise VitvizError(f"Exercise 07.3 wants a number of percent, got {answer!r}.")
    images = _pictured(model).batch(range(256)).images
    power = [(part - part.mean((2, 3), keepdim=True)).square().sum() for part in (filtered(images, 8, "high"), images)]
    found = 100 * (power[0] / power[1]).item()
    near = abs(answer - found) <= 3
    return near, (f"it is {found:.1f} %, within 3 of yours." if near else
                  "your number is more than 3 off. Compare the variance of high-passed scenes with that of whole ones.")


def _context_kept(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 08.1: points by which context explains more of the last layer's variance than in emoji-vit-standard, within 1."""
    if isinstance(answer, bool) or not isinstance(answer, Real):
        raise VitvizError(f"Exercise 08.1 wants a number of percentage points, got {answer!r}.")
    own, other = (variance_by_fact(m, n=2048).by_layer().table.query("`explained by` == 'context'")["value"].iloc[-1]
                  for m in (model, load("emoji-vit-standard")))
    near = abs(answer - (own - other)) <= 1
    return near, (f"{own:.1f} against {other:.1f} %: {own - other:.1f} points." if near else
                  "your number is more than 1 off. Take the last layer, the context, and the mean over all units of each model.")


def _own_caption(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 08.2: percent of 256 scenes whose own caption of all 256 is the nearest to them, within 2."""
    if isinstance(answer, bool) or not isinstance(answer, Real):
        raise VitvizError(f"Exercise 08.2 wants a number of percent, got {answer!r}.")
    world = _pictured(model)
    with torch.inference_mode():
        nearest_caption = (_shelf(model, world, 256) @ model.text(world.captions(range(256))).T).argmax(1).cpu()
    own = int((nearest_caption == torch.arange(256)).sum())
    near = abs(answer - own / 2.56) <= 2
    return near, (f"{own} of 256 scenes are nearest to their own caption: {own / 2.56:.1f} %." if near else
                  "your number is more than 2 off. Take the full captions, and for each scene the nearest of all 256.")


def _ground_unsaid(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 08.3: a concept; of the ten scenes nearest to its name that do not show it, seven or more lie in one context."""
    world = _pictured(model)
    if answer not in world.concepts:
        raise VitvizError(f"Exercise 08.3 wants the name of a concept, such as 'lion', got {answer!r}."
                          f"{nearest(str(answer), world.concepts)}")
    facts, concept = world.facts(np.arange(512)), world.concepts.index(answer)
    with torch.inference_mode():
        near = (_shelf(model, world, 512) @ model.text([f"a {answer}"])[0]).cpu().numpy()
    near = np.where((facts["concept"] == concept) | (facts["companion"] == concept), -2, near)
    found = np.bincount(facts["context"][np.argsort(-near)[:10]], minlength=len(CONTEXTS))
    said = f"of the ten scenes nearest to 'a {answer}' that show none, {found.max()} lie on {CONTEXTS[found.argmax()]}"
    return bool(found.max() >= 7), f"{said}." if found.max() >= 7 else f"{said}; wanted are seven."


def _shelf(model: VisionModel, world: EmojiWorld, n: int) -> torch.Tensor:
    """Points of the first ``n`` scenes, a few of which are in memory at a time."""
    return torch.cat([image_embeddings(model, world.batch(range(start, start + 64)).images) for start in range(0, n, 64)])


def _pictured(model: VisionModel) -> EmojiWorld:
    """Validation scenes in the three styles of pictures, for whatever styles a model was trained on."""
    return EmojiWorld("val", styles=STYLES[:3], size=model.image_size)


def _longest_at_its_place(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 09.1: the embedded model in whose last layer most of a change stays at its place."""
    values = _of_families("a change stays at its place, last layer")
    if answer not in values:
        raise VitvizError(f"Exercise 09.1 wants one of the models {', '.join(values.index)}, got {answer!r}."
                          f"{nearest(str(answer), values.index)}")
    most = answer == values.idxmax()
    return most, f"in {answer} {values[answer]:.1f} % stay, {'more than in any other' if most else 'in another model more'}."


def _same_thing_twice(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 09.2: a concept and units of two models, three or more of whose six strongest scenes show it."""
    if (not isinstance(answer, tuple) or len(answer) != 3
            or not all(isinstance(unit, tuple) and len(unit) == 2 and isinstance(unit[0], str) for unit in answer[1:])):
        raise VitvizError(f"Exercise 09.2 wants a concept and two units, such as ('lemon', ('emoji-vit', 0), "
                          f"('emoji-pit-robust', 0)), got {answer!r}.")
    concept, *units = answer
    counts, shown = [], set()
    for name, neuron in units:
        atlas = embedded(name)
        if atlas is None:
            raise VitvizError(f"No atlas of {name!r} comes with the kit; there is one of each of "
                              f"{', '.join(embedded_atlases())}.")
        scenes = atlas.table().query("layer == layer.max()").set_index("neuron")["scenes"]
        counts.append(scenes[whole_number("09.2", neuron, f"a neuron of {name}", len(scenes) - 1)].count(concept))
        shown.update(*scenes)
    if concept not in shown:
        raise VitvizError(f"Exercise 09.2 wants a concept that some unit's scenes show; none shows {concept!r}."
                          f"{nearest(str(concept), shown)}")
    said = " and in ".join(f"{count} of the 6 of {name}'s unit {neuron}"
                           for count, (name, neuron) in zip(counts, units, strict=True))
    if units[0][0] == units[1][0]:
        return False, f"both units are of {units[0][0]}; take two families."
    return min(counts) >= 3, f"{concept} is in {said}{'.' if min(counts) >= 3 else '; wanted are 3 or more in both.'}"


def _without_one(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 09.3: the least and greatest correlation of accuracy and radius needed, a model left out, within 0.02."""
    if not isinstance(answer, tuple) or len(answer) != 2 or not all(isinstance(value, Real) for value in answer):
        raise VitvizError(f"Exercise 09.3 wants two correlations, such as (-0.1, 0.5), got {answer!r}.")
    whole, waves = (_of_families(what) for what in ("right answers on whole scenes", "low-pass that leaves 90 % of them"))
    without = [whole.drop(name).corr(waves.drop(name)) for name in whole.index]
    near = max(abs(answer[0] - min(without)), abs(answer[1] - max(without))) <= 0.02
    said = f"it moves between {min(without):.2f} and {max(without):.2f}; with all models it is {whole.corr(waves):.2f}."
    return near, said if near else "one is more than 0.02 off. Leave out each model once; take the least and the greatest."


def _of_families(what: str) -> pd.Series:
    """The stored value of each embedded model that has this number."""
    table = stored()
    return table[table["what"] == what].set_index("model")["value"]


def _beats_chance(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 10.1: a score of the game whose interval, over both kinds of hint, lies above guessing."""
    answer = answer.score if isinstance(answer, TaskWidget) else answer
    if not isinstance(answer, Result) or "hint" not in answer.table:
        raise VitvizError(f"Exercise 10.1 wants a game, or a score such as task.play(player, name), got {answer!r}.")
    table = answer.table[answer.table["n"] > 0]
    n, hits = int(table["n"].sum()), round((table["value"] * table["n"]).sum() / 100)
    low, high = wilson(hits, n)
    said = f"{hits} of {n} answers are right; the 95 % interval is {100 * low:.1f} to {100 * high:.1f} %"
    return low > 0.5, f"{said}, above guessing." if low > 0.5 else f"{said}, so it could be guessing (50 %)."


def _liar(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 10.2: the neuron of a doctored model whose picture is another's."""
    if not isinstance(model.module, FoolingCircuit):
        raise VitvizError(f"Exercise 10.2 is about a doctored model, and {model.name} is none; pass suspect.")
    neuron, shown = model.module.neuron, model.module.shown
    wanted = whole_number("10.2", answer, "a neuron", model.module.width - 1)
    return wanted == neuron, (f"neuron {neuron} shows the picture of neuron {shown}." if wanted == neuron else
                              f"neuron {wanted} is honest. Whose picture has nothing of its top scenes?")


def _worth_of_selectivity(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 10.3: points between the shares of pictures named from a selectivity of 4 and below 3, last layer, within 3."""
    if isinstance(answer, bool) or not isinstance(answer, Real):
        raise VitvizError(f"Exercise 10.3 wants a number of percentage points, got {answer!r}.")
    site, judge = next(iter(find_sites(model).values()))[-1], load("emoji-resnet" if model.name != "emoji-resnet" else "emoji-vit")
    chosen, viewer, hits = selectivity(model, site), Visualizer(model), []
    for part in torch.arange(site.units).split(64):  # all pictures at once would take the notebook past 1.2 GB
        pictures = viewer.render(site.layer, part.tolist(), site.kind).pictures
        hits.append(recognition(pictures, chosen.concept[part], chosen.strength[part], judge, 4.0).hits.float())
    hits = torch.cat(hits)
    high, low = (100 * hits[part].mean().item() for part in (chosen.strength >= 4, chosen.strength < 3))
    near = abs(answer - (high - low)) <= 3
    return near, (f"{high:.1f} against {low:.1f} %: {high - low:.1f} points." if near else
                  "your number is more than 3 points off. Take all neurons of the last layer, as 10.3 says.")


def _favorite_photograph(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 11.1: a neuron of the last layer, and the photograph of the kit that excites it most."""
    site, photos = next(iter(find_sites(model).values()))[-1], _photographs(model)
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], str):
        raise VitvizError(f"Exercise 11.1 wants a neuron and a photograph, such as (376, 'cat'), got {answer!r}.")
    neuron, names = whole_number("11.1", answer[0], "a neuron", site.units - 1), [path.stem for path in photos.paths]
    if answer[1] not in names:
        raise VitvizError(f"No photograph is called {answer[1]!r}.{nearest(answer[1], names)} There are {', '.join(names)}.")
    found = top_images(model, site.layer, neuron, site.kind, photos, k=len(names))
    order = [names[i] for i in found.indices]
    right = answer[1] == order[0]
    return right, (f"{order[0]} excites neuron {neuron} most, then {order[1]} ({found.activations[0]:.2f} and "
                   f"{found.activations[1]:.2f})." if right else
                   f"{answer[1]} is number {order.index(answer[1]) + 1} of {len(order)} for neuron {neuron}.")


def _alike_on_photographs(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 11.2: mean cosine of the patch tokens of a photograph in the last layer, within 0.03."""
    if isinstance(answer, bool) or not isinstance(answer, Real):
        raise VitvizError(f"Exercise 11.2 wants a mean cosine, got {answer!r}.")
    table = token_similarity(model, _photographs(model)).table.query("tokens == 'patches'")
    last = table.iloc[-1]
    near = abs(answer - last["value"]) <= 0.03
    return near, (f"{last['value']:.2f} in layer {last['layer']} (95 % interval {last['low']:.2f} to {last['high']:.2f}, "
                  f"{last['n']} photographs)." if near else
                  "your number is more than 0.03 off. Take the last layer, patches of an image, and the photographs alone.")


def _own_report(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 11.3: a report of four items or more, with words on each; a rendering, a finding, and one of words alone."""
    if not isinstance(answer, Report):
        raise VitvizError(f"Exercise 11.3 wants a report, made by vv.Report(folder, title), got {answer!r}.")
    kinds = [type(item.shown) for item in answer.items]
    lacks = [f"four items (it has {len(kinds)})"] * (len(kinds) < 4)
    lacks += ["pictures (a Rendering)"] * (Rendering not in kinds) + ["a measurement (a Finding)"] * (Result not in kinds)
    lacks += ["an item of words alone, on what you could not show"] * (type(None) not in kinds)
    lacks += [f"words on {item.heading!r}" for item in answer.items if not item.text.strip()]
    return not lacks, (f"{len(kinds)} items with words on each, in {answer.page.name}. Whether they convince, others must say."
                       if not lacks else f"the report lacks {'; '.join(lacks)}.")


def _photographs(model: VisionModel) -> ImageFolder:
    """The eight photographs of the kit, at a model's size."""
    return image_folder(data_dir() / "photos", model.image_size)


FURTHER: dict[str, Callable] = {"06.1": _guessing_by_context, "06.2": _out_of_place, "06.3": _context_unit,
                                "07.1": _half_of_it, "07.2": _hybrid_fools, "07.3": _share_beyond,
                                "08.1": _context_kept, "08.2": _own_caption, "08.3": _ground_unsaid,
                                "09.1": _longest_at_its_place, "09.2": _same_thing_twice, "09.3": _without_one,
                                "10.1": _beats_chance, "10.2": _liar, "10.3": _worth_of_selectivity,
                                "11.1": _favorite_photograph, "11.2": _alike_on_photographs, "11.3": _own_report}
