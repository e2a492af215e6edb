"""How a model is trained: architecture, data, optimization and objective. A model's card keeps it."""

import dataclasses

from ..datasets.sprites import STYLES
from ..models.cards import embedded_names, read_card
from ..utils import validate
from ..utils.errors import VitvizError

SIZE = 64  # px
# Few augmentations leave the colors of a feature visualization as the neuron prefers them (data/models/README.md).
PICTURES = {"steps": 64, "copies": 1, "tv": 0.04, "jitter": 0.125, "color": 0.1, "noise": 0.05, "spread": 0.2, "leak": 0.1}


@dataclasses.dataclass(frozen=True)
class Training:
    """How one embedded model is trained; by default from random weights, on labels. Cards hold these fields.

    A ``patch_drop_rate`` of the architecture holds until the last fifth of the steps (PatchDropout, Liu et al. 2022): the
    transformer sees almost twice as many scenes in the same time.
    """

    architecture: dict  # class and arguments, as models.cards.build takes them
    styles: tuple[str, ...] = STYLES[:3]  # one given twice is drawn twice as often; the others are held out for tests of transfer
    steps: int = 4500
    batch: int = 128  # scenes in a step
    peak: float = 3e-3  # the largest learning rate, which then falls to 0 along a cosine
    warmup: int = 200  # steps to reach the peak
    decay: float = 0.05  # of the weights
    drop_path: float = 0.0  # how often a block's branch is dropped, in every block alike (stochastic depth, Huang et al. 2016)
    start: str | None = None  # the model whose trained weights it starts from
    radius: float = 0.0  # L2 norm of the adversarial perturbation of each scene (PGD), of the whole image in [0, 1]; 0 for none
    every_token: bool = False  # dense supervision: each patch token of the last block predicts the concept, not only CLS
    teacher: str | None = None  # the model whose predictions the distillation token learns (DeiT)
    captions: bool = False  # match scenes and captions with a text tower (CLIP) instead of labels
    seed: int = 0  # of weights, scenes and perturbations
    pictures: dict = dataclasses.field(default_factory=lambda: PICTURES)  # Recipe.quick's settings for this model

    def __post_init__(self):
        for name, low, high in (("steps", 1, 10**9), ("batch", 1, 2**16), ("warmup", 1, 10**9), ("seed", 0, 2**40)):
            validate.whole(name, getattr(self, name), low, high)
        for name, high in (("peak", 1e38), ("decay", 1e6), ("radius", 1e6), ("drop_path", 0.9)):
            validate.real(name, getattr(self, name), 0, high)
        for style in self.styles:
            validate.choice("styles", style, STYLES)
        if self.every_token + bool(self.teacher) + self.captions > 1:
            raise VitvizError("Each of every_token, teacher and captions sets what a model learns from; a recipe takes one.")


def recipe_of(name: str) -> Training:
    """The recipe in the card of an embedded model; VitvizError for a card that holds none."""
    card = read_card(validate.choice("A recipe to train", name, embedded_names()))
    try:
        return Training(card["architecture"], **card["recipe"], pictures=card.get("pictures", PICTURES))
    except (KeyError, TypeError) as error:
        raise VitvizError(f"The card of {name} holds no recipe of this kit ({error}); see vitviz doctor.") from None
