"""The settings of one activation maximization."""

from dataclasses import asdict, dataclass
from math import isfinite, sinh
from numbers import Integral, Real

from ..utils.errors import VitvizError, nearest


@dataclass(frozen=True)
class Recipe:
    """How a picture is made: Adam on pixels, clamped to [0, 1] after each step, on augmented copies.

    The loss of one picture is ``tv * total_variation(picture) - mean activation over its copies``.

    Attributes:
        steps: updates, at least 1.
        lr: Adam's learning rate in pixel units, falling to 0 along a cosine; betas are (0.5, 0.99).
        copies: augmented copies of the picture seen in each step.
        tv: weight of the total variation of the picture (``objective.total_variation``).
        jitter: circular shift of the copies in each step, up to this share of the side in both directions.
        color: each copy becomes (x - m) / s per channel, m uniform in ±color and log s uniform in ±color.
        noise: standard deviation of a Gaussian offset per copy and channel, times the share of steps that remain.
        spread: the picture begins uniform in 0.5 ± spread.
        leak: share of the activation function's *input* that is maximized beside its output. A unit that is far below zero
            at the start has no slope to climb (or, with GELU, a wrong one); this gives it one, as the "redirected ReLU" of
            the Lucid library does. Curves and scores are of the activation alone.
        blur: standard deviation, as a share of the side, of the Gaussian by which slopes are blurred at first; it falls to 0 over
            two thirds of the steps, so that large forms are found before small ones.
    """

    steps: int = 400
    lr: float = 0.1
    copies: int = 8
    tv: float = 0.0047
    jitter: float = 1 / 7
    color: float = 1.0
    noise: float = 0.5
    spread: float = 0.5
    leak: float = 0.0
    blur: float = 0.0

    def __post_init__(self):
        for name, value in asdict(self).items():
            whole = name in ("steps", "copies")
            if not isinstance(value, Integral if whole else Real) or not isfinite(value):
                raise VitvizError(f"A recipe's {name} is a {'whole' if whole else 'finite'} number, got {value!r}.")
            object.__setattr__(self, name, int(value) if whole else float(value))  # NumPy's numbers do not go into JSON
        if self.steps < 1 or self.copies < 1:
            raise VitvizError(f"A recipe needs at least 1 step and 1 copy, got {self.steps} steps and {self.copies} copies.")
        if (self.lr <= 0 or min(self.tv, self.color, self.noise, self.leak) < 0
                or not all(0 <= share <= 0.5 for share in (self.jitter, self.spread, self.blur))):
            raise VitvizError("A recipe needs lr > 0, tv, color, noise and leak >= 0, jitter, spread and blur in 0 to 0.5, got "
                              + ", ".join(f"{k}={v}" for k, v in asdict(self).items() if k not in ("steps", "copies")) + ".")

    @classmethod
    def paper(cls, tv: float = 1.0) -> "Recipe":
        """The published settings (arXiv 2212.06727, section 3 and the authors' code).

        ``tv`` is the paper's nominal weight, 0.1 to 100 there depending on the model, times 0.0005 in their loss. Two
        factors lie between it and ours. Their code averages the activation of 8 copies over an 8 x 8 diagonal matrix, so
        it counts 1/8 of the mean: relative to it their penalty is 8 times the nominal, and that effective weight is what
        this recipe uses. And they penalize the copies, whose contrast the color shift changes by 1 / s, on average
        sinh(1) = 1.18; we penalize the picture, once, with that factor.
        """
        return cls(tv=0.0005 * tv * 8 * sinh(1.0))

    @classmethod
    def quick(cls, model=None) -> "Recipe":
        """For a first look, in a fraction of the paper's work; for an embedded ``model``, as its card says suits it."""
        card = model and model.card
        return cls(**{"steps": 100, "copies": 4, **(card and card.get("pictures") or {})})

    @classmethod
    def named(cls, name: str, model=None) -> "Recipe":
        """``"paper"`` or ``"quick"`` (for ``model``); VitvizError for another name."""
        if name not in RECIPES:
            raise VitvizError(f"There is no recipe {name!r}; there are {', '.join(RECIPES)}.{nearest(name, RECIPES)}")
        return cls.quick(model) if name == "quick" else cls.paper()

    @property
    def work(self) -> str:
        """How much is done, in words: "128 steps of 1 copy"."""
        return f"{self.steps} step{'s' * (self.steps != 1)} of {self.copies} {'copy' if self.copies == 1 else 'copies'}"

    def as_dict(self) -> dict:
        return asdict(self)


RECIPES = ("quick", "paper")
