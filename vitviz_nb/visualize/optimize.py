"""Gradient descent on images: Adam with a cosine learning rate and a clamp, as pure steps over an immutable state."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..models.vision_model import VisionModel
from ..utils.errors import VitvizError

BETA1, BETA2, EPSILON = 0.5, 0.99, 1e-8


@dataclass(frozen=True, eq=False)
class Adam:
    """State of the optimization of K images after ``step`` updates; ``Adam.of(images)`` is the first.

    Nothing is changed in place, so an interrupt leaves a whole state, from which the same call continues to the same bits::

        state = Adam.of(images)
        while state.step < steps:
            state = state.update(losses, steps, lr)

    Attributes:
        images: (K, 3, S, S) in [0, 1], or whatever else they are made of (see ``parameterization``).
        first, second: running means of the gradient and of its square, shaped like ``images``.
    """

    images: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    step: int = 0

    @classmethod
    def of(cls, images: torch.Tensor) -> "Adam":
        images = images.detach()
        return cls(images, torch.zeros_like(images), torch.zeros_like(images))

    def update(self, losses: Callable[[torch.Tensor], torch.Tensor], steps: int, lr: float,
               change: Callable[[torch.Tensor], torch.Tensor] | None = None, scale: float = 1.0,
               bounds: tuple[float, float] = (0.0, 1.0)) -> "Adam":
        """The state after one update that lowers the losses (betas 0.5 and 0.99).

        Args:
            losses: maps images (K, 3, S, S), which require a gradient, to their losses (K,), each of its own image alone.
            steps: updates in all; the learning rate falls from ``lr`` to 0 along a cosine over them.
            change: applied to the gradient (K, 3, S, S) before it is used, such as a blur.
            scale: of the losses during backpropagation, for float16 has too little range for gradients this small.
            bounds: to which images are clamped after the update.

        Raises:
            VitvizError: no gradient reaches the images, as under ``torch.no_grad``.
        """
        images = self.images.detach().requires_grad_()
        with torch.enable_grad():
            total = scale * losses(images).sum()  # a sum, so that no image's gradient depends on its neighbors in the batch
        gradient = gradient_of("The loss", total, images)
        gradient = change(gradient / scale) if change else gradient / scale
        n = self.step + 1
        first = self.first + (gradient - self.first) * (1 - BETA1)
        second = self.second + (gradient.square() - self.second) * (1 - BETA2)
        rate = float(lr * 0.5 * (1 + np.cos(np.pi * self.step / steps)))
        move = first / (1 - BETA1**n) / ((second / (1 - BETA2**n)).sqrt() + EPSILON)
        return Adam((self.images - rate * move).clamp(*bounds), first, second, n)

    def to(self, device: torch.device) -> "Adam":
        return Adam(self.images.to(device), self.first.to(device), self.second.to(device), self.step)

    def __getitem__(self, k: int) -> "Adam":
        """The state of image ``k`` alone."""
        return Adam(self.images[k : k + 1], self.first[k : k + 1], self.second[k : k + 1], self.step)

    @staticmethod
    def join(states: list["Adam"]) -> "Adam":
        """States at the same step as one, whose images are optimized together."""
        return Adam(*(torch.cat([getattr(state, name) for state in states]) for name in ("images", "first", "second")),
                    states[0].step)


def check_weights(model: VisionModel) -> None:
    """VitvizError for a model whose weights let no gradient through."""
    if any(weight.is_inference() for weight in (model.mean, model.std, *model.module.parameters())):
        raise VitvizError(f"{model.name} was made in torch.inference_mode, so no gradient flows through its weights; load it "
                          f"outside of that.")


def gradient_of(what: str, value: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """The gradient of a number by images; VitvizError, calling the number ``what``, where none reaches them."""
    gradient = torch.autograd.grad(value, images, allow_unused=True)[0] if value.requires_grad else None
    if gradient is None:
        raise no_gradient(what)
    return gradient


def no_gradient(what: str) -> VitvizError:
    """The error for a network through which no gradient flows."""
    return VitvizError(f"{what} does not depend differentiably on the image: the forward pass is cut off from the gradient "
                       f"(torch.no_grad, inference_mode, detach, integers). Remove that; nothing can be optimized through it.")
