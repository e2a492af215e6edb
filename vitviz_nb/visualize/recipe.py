"""The settings of one activation maximization."""

from dataclasses import dataclass
from math import sinh

from ..utils import validate
from ..utils.errors import VitvizError

RECIPES = ("quick", "fourier", "paper")
PARAMETERIZATIONS = ("pixels", "fourier")
MOST_STEPS = 100_000
_RANGES = {"lr": (1e-6, 10), "tv": (0, 1000), "jitter": (0, 0.5), "color": (0, 5), "noise": (0, 10), "spread": (0, 0.5),
           "leak": (0, 10), "blur": (0, 0.5), "canvas": (1, 4), "power": (0, 4), "grain": (0, 10)}


@dataclass(frozen=True)
class Recipe:
    """How an image is optimized: Adam on its pixels or its spectrum, on augmented views ("copies").

    The loss of one image is ``tv * total_variation(image) - mean activation over its views``. Numbers outside of these ranges
    raise a VitvizError.

    Attributes:
        steps: updates, 1 to 100,000.
        lr: Adam's learning rate in units of what is optimized, 1e-6 to 10, annealed to 0 along a cosine; betas are (0.5, 0.99).
        copies: augmented views of the image in each step, 1 to 1,024.
        tv: weight of the total variation of the image (``objective.total_variation``), 0 to 1,000.
        jitter: circular shift of the views in each step, up to this share of the side in both directions, 0 to 0.5.
        color: each view becomes (x - m) / s per channel, m uniform in ±color and log s uniform in ±color; 0 to 5.
        noise: standard deviation of a Gaussian offset per view and channel, times the share of steps that remain; 0 to 10.
        spread: the image begins uniform in 0.5 ± spread, 0 to 0.5; a spectrum normal with this standard deviation.
        leak: share of the activation function's *input* that is maximized beside its output, 0 to 10. It gives a unit far below
            zero a gradient, as Lucid's "redirected ReLU" does. Curves and scores are of the activation alone.
        blur: standard deviation, as a share of the side, of the Gaussian that low-pass filters gradients, 0 to 0.5; it falls to
            0 over two thirds of the steps, so that low frequencies are found before high ones. Of pixels only.
        parameterization: what is optimized, "pixels" (clamped to [0, 1] after each step) or "fourier": the spectrum of the
            image in decorrelated colors (see ``parameterization.Fourier``).
        canvas: side of the image, as a multiple of the network's input, 1 to 4. Pictures are that large; scores are of the
            picture resized to the input.
        crops: each view shows a random square of the image, its side between these shares of the image's side, 0.05 to 1.
        power: a spectrum is scaled by 1 / frequency^power, 0 to 4.
        grain: standard deviation of Gaussian noise on each pixel of a view, times the share of steps that remain; 0 to 10.
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
    parameterization: str = "pixels"
    canvas: float = 1.0
    crops: tuple[float, float] = (1.0, 1.0)
    power: float = 1.1
    grain: float = 0.0

    def __post_init__(self):
        checked = {"steps": validate.whole("A recipe's steps", self.steps, 1, MOST_STEPS),
                   "copies": validate.whole("A recipe's copies", self.copies, 1, 1024)}
        checked |= {name: validate.real(f"A recipe's {name}", getattr(self, name), *ends) for name, ends in _RANGES.items()}
        validate.choice("A recipe's parameterization", self.parameterization, PARAMETERIZATIONS)
        if not isinstance(self.crops, (tuple, list)) or len(self.crops) != 2:
            raise VitvizError(f"A recipe's crops are two numbers from 0.05 to 1, got {validate.shown(self.crops)}.")
        high = validate.real("The second of a recipe's crops", self.crops[1], 0.05, 1)
        checked["crops"] = validate.real("The first of a recipe's crops", self.crops[0], 0.05, high), high
        if checked["blur"] and self.parameterization != "pixels":
            raise VitvizError("A recipe's blur is of the gradient of pixels; with parameterization=\"fourier\" it is 0.")
        for name, value in checked.items():  # as Python numbers, for NumPy's do not go into JSON
            object.__setattr__(self, name, value)

    @classmethod
    def paper(cls, tv: float = 1.0) -> "Recipe":
        """The published settings (arXiv 2212.06727, section 3 and the authors' code).

        ``tv`` is the paper's nominal weight, 0.1 to 100 depending on the model, times 0.0005 in their loss. Their code averages
        the activation of 8 views over an 8 x 8 diagonal matrix, so it counts 1/8 of the mean: hence the factor 8. They penalize
        the views, whose contrast the color shift changes by 1 / s, on average sinh(1); we penalize the image with that factor.
        """
        return cls(tv=0.0005 * validate.real("tv", tv, 0, 1e5) * 8 * sinh(1.0))

    @classmethod
    def fourier(cls) -> "Recipe":
        """A natural-image prior, for networks trained on photographs: a Fourier-parameterized image seen in random crops."""
        return cls(steps=64, lr=0.07, copies=2, tv=0.006, jitter=0.1, color=0.0, noise=0.0, spread=0.01, leak=0.1,
                   parameterization="fourier", canvas=12 / 7, crops=(0.4, 0.95), grain=0.08)

    @classmethod
    def quick(cls, model=None) -> "Recipe":
        """For a first look, in a fraction of the paper's work: for an embedded ``model`` as its card says, else ``fourier()``."""
        pictures = (getattr(model, "card", None) or {}).get("pictures")
        return cls(**{"steps": 100, "copies": 4, **pictures}) if pictures else cls.fourier()

    @classmethod
    def named(cls, name: str, model=None) -> "Recipe":
        """``"quick"`` (for ``model``), ``"fourier"`` or ``"paper"``; VitvizError for another name."""
        return cls.quick(model) if validate.choice("A recipe", name, RECIPES) == "quick" else getattr(cls, name)()

    def side(self, size: int) -> int:
        """Side in px of the pictures of a network whose input is ``size`` px wide."""
        return round(self.canvas * size)

    @property
    def work(self) -> str:
        """Its cost in words: "128 steps of 1 copy"."""
        return f"{self.steps} step{'s' * (self.steps != 1)} of {self.copies} {'copy' if self.copies == 1 else 'copies'}"
