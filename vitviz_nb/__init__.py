"""vitviz_nb: see what vision transformers learn.

>>> import vitviz_nb as vv
>>> model = vv.load("emoji-vit")
>>> vv.Visualizer(model).render(layer=5, neurons=range(16))

Names are imported when first used, so that ``import vitviz_nb`` takes milliseconds and torch loads only when needed.
"""

import importlib
import os

# While threads of a torch that loads later wait for each other they sleep. Spinning, as by default, saves a fifth of the time of
# small steps on idle cores; but where other processes want the cores, a step of ViT-S took 7 to 17 times as long as on one idle
# core, and 4 times as long asleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.2.0"

_HOME = {  # public name: the module it is in
    "EmojiWorld": "datasets.emoji_world",
    "Scenes": "datasets.emoji_world",
    "ImageSet": "datasets.image_set",
    "image_folder": "datasets.image_folder",
    "photos": "datasets.photographs",
    "imagenette": "datasets.photographs",
    "pets": "datasets.photographs",
    "VisionModel": "models.vision_model",
    "load": "models.loading",
    "list_models": "models.loading",
    "wrap": "models.wrapping",
    "Recipe": "visualize.recipe",
    "Visualizer": "visualize.visualizer",
    "Atlas": "visualize.atlas",
    "make_atlas": "visualize.atlas_maker",
    "Rendering": "visualize.rendering",
    "top_images": "visualize.top_images",
    "connect": "visualize.shared",
    "Result": "experiments.result",
    "Explorer": "widgets.explorer",
    "explore": "widgets.explorer",
    "browse": "widgets.browser",
    "Browser": "widgets.browser",
    "interactive": "widgets.interactive",
    "Report": "course.report",
    "setup": "course.setup",
    "check": "course.checks",
    "VitvizError": "utils.errors",
}
__all__ = sorted([*_HOME, "sites"])


def __getattr__(name: str):
    if name == "sites":
        return importlib.import_module("vitviz_nb.models.sites")
    if name not in _HOME:
        raise AttributeError(f"vitviz_nb has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"vitviz_nb.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
