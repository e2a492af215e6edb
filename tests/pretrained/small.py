"""Imported by the first cell of a notebook in test_notebooks.py: all that it computes is small, for only its cells are tried."""

import functools
import importlib
import inspect
import pkgutil
from dataclasses import replace

from vitviz_nb import experiments
from vitviz_nb.datasets.emoji_world import EmojiWorld
from vitviz_nb.datasets.image_set import ImageSet
from vitviz_nb.experiments import faithfulness, fooling_circuit, inversion
from vitviz_nb.visualize.recipe import Recipe
from vitviz_nb.visualize.visualizer import Visualizer
from vitviz_nb.widgets.two_alternative import Task

MOST = {"n": 24, "neurons": 2}  # of images, and of neurons of each layer
OF_UNITS = 1024  # scenes, of which some concept has four in each half


def limited(function, limits):
    """An experiment that sees at most that many, whatever its cell asks for."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def small(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, most in limits.items():
            if isinstance(bound.arguments.get(name), int):
                bound.arguments[name] = min(bound.arguments[name], most)
        return function(*bound.args, **bound.kwargs)

    return small


for name in [info.name for info in pkgutil.iter_modules(experiments.__path__)]:
    module = importlib.import_module(f"{experiments.__name__}.{name}")
    for called, function in list(vars(module).items()):
        if inspect.isfunction(function) and not called.startswith("_"):
            known = inspect.signature(function).parameters
            if MOST.keys() & known.keys() and (first := next(iter(known))) in ("model", "models", "visualizer"):
                n = {"n": OF_UNITS} if function.__module__.endswith(".units") else {"n": 2} if first == "visualizer" else {}
                setattr(module, called, limited(function, MOST | n))  # of a visualizer's, n counts neurons
faithfulness._SCENES_OF_LARGE, fooling_circuit._SCENES, inversion.STEPS = 256, 64, 2
Task.__init__ = limited(Task.__init__, {"n": 8})  # questions, half of them with a visualization

visualizer, image_set, trajectory = Visualizer.__init__, ImageSet.__init__, fooling_circuit.trajectory


@functools.wraps(visualizer)
def few_steps(self, model, recipe=None, *args, **kwargs):
    visualizer(self, model, replace(recipe or Recipe.quick(model), steps=1, copies=1), *args, **kwargs)


@functools.wraps(image_set)
def few_images(self, model, images=None, n=None):
    scenes = images is None or isinstance(images, EmojiWorld)
    image_set(self, model, images, 96 if n is None and scenes and not model.card else n)


Visualizer.__init__, ImageSet.__init__ = few_steps, few_images
fooling_circuit.trajectory = lambda model, site, neurons, recipe: trajectory(model, site, neurons, replace(recipe, steps=8))
