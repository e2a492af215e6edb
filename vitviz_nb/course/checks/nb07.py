"""Checks of notebook 07, Finding: frequency."""

import torch

from ...experiments.frequency import filtered, hybrid
from ...plotting.prediction_bars import predict
from ...utils import validate
from . import close, color_world, implementation, parts, verdict


def exercise_1(answer, model=None):
    """A function of images (N, 3, S, S) and a cutoff in cycles per image, to the low-passed images."""
    random = torch.Generator().manual_seed(7)
    inputs = [(0.5 + 0.05 * torch.rand(2, 3, side, side, generator=random), k) for side, k in ((32, 4), (20, 6), (16, 0))]

    def masked(images, keep, shifted=False):
        spectrum = torch.fft.fft2(images)
        if shifted:
            return torch.fft.ifft2(torch.fft.fftshift(spectrum, (2, 3)) * keep).real
        return torch.fft.ifft2(spectrum * keep).real

    def cycles(side):
        line = torch.fft.fftfreq(side) * side
        return line[:, None], line

    def square(images, cutoff):
        down, across = cycles(images.shape[-1])
        return masked(images, (down.abs() <= cutoff) & (across.abs() <= cutoff))

    def high(images, cutoff):
        down, across = cycles(images.shape[-1])
        return masked(images, (down**2 + across**2).sqrt() > cutoff)

    def centered(images, cutoff):
        line = torch.arange(images.shape[-1]) - images.shape[-1] // 2
        return masked(images, (line[:, None] ** 2 + line**2).sqrt() <= cutoff)

    def not_back(images, cutoff):
        line = torch.arange(images.shape[-1]) - images.shape[-1] // 2
        return masked(images, (line[:, None] ** 2 + line**2).sqrt() <= cutoff, shifted=True)

    def per_pixel(images, cutoff):
        down, across = (line / images.shape[-1] for line in cycles(images.shape[-1]))
        return masked(images, (down**2 + across**2).sqrt() <= cutoff)

    return implementation(answer, lambda images, cutoff: filtered(images, cutoff, "low"), inputs, {
        "this keeps the high frequencies; a low-pass keeps those up to the cutoff": high,
        "a frequency has two components: keep where the length of (down, across) is at most the cutoff, a disk": square,
        "fft2 puts frequency 0 in the corner: build the mask from torch.fft.fftfreq, or shift the spectrum": centered,
        "undo the shift of the spectrum (ifftshift) before you transform back": not_back,
        "fftfreq is in cycles per pixel; times the side it is in cycles per image": per_pixel,
    }, tolerance=1e-3)


def exercise_2(answer, model):
    """Two scenes and a cutoff of 12 or less: the model predicts the low-passed one's class, though it knows the other, too."""
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


def exercise_4(answer, model=None):
    """The explanation that fits the notebook's three observations on the CNN and high frequencies."""
    against = {
        "evidence": "then high frequencies alone, or another object's in a hybrid, would decide predictions, and they do not",
        "accuracy": "then the difference would be gone on images that both models classify correctly, and it is not",
    }
    choice = validate.choice("An explanation", answer, ("support", *against))
    return choice == "support", against.get(choice, "high frequencies help to read low ones; alone they carry no class.")
