"""How far do a model's answers depend on fine and on coarse structure? (Paper, section 5.)"""

import pandas as pd
import torch

from .answers import accuracy_rows, right_answers
from .errors import VitvizError
from .finding import Finding
from .models import VisionModel
from .stimuli import Stimuli

PASSES = ("low", "high")


def filtered(images: torch.Tensor, radius: float, passes: str = "low") -> torch.Tensor:
    """Images (N, 3, S, S) with only the waves up to ("low") or beyond ("high") ``radius`` cycles a side, clamped to [0, 1].

    The mean of each channel always stays, so that a high-pass keeps an image's brightness and colour cast.
    """
    if passes not in PASSES:
        raise VitvizError(f"A filter passes low or high frequencies, got {passes!r}.")
    if radius < 0:
        raise VitvizError(f"A radius in the spectrum is at least 0 cycles a side, got {radius}.")
    line = torch.fft.fftfreq(images.shape[-1], device=images.device) * images.shape[-1]
    distance = (line[:, None] ** 2 + line[None] ** 2).sqrt()
    keep = (distance <= radius) if passes == "low" else (distance > radius)
    keep[0, 0] = True
    return torch.fft.ifft2(torch.fft.fft2(images) * keep).real.clamp(0, 1)


def radii(size: int) -> list[int]:
    """The radii that curves are measured at, in cycles a side: from 1 / 32 of the side to all of it."""
    return sorted({max(1, round(size * share)) for share in (1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 0.71)})


def by_frequency(model: VisionModel, images=None, n: int | None = None, passes: str = "low") -> Finding:
    """Accuracy against the radius of a low-pass or high-pass in the spectrum, in cycles a side, top-1 and top-5.

    The last radius of a low-pass keeps everything; a high-pass has a first row, radius 0, that does.
    """
    stimuli = Stimuli(model, images, n)
    steps, rows = radii(model.image_size), []
    for radius in steps if passes == "low" else [0, *steps[:-1]]:
        hits = right_answers(model, stimuli, f"{passes}-pass {radius}",
                             lambda _, batch, radius=radius: filtered(batch, radius, passes))
        rows += accuracy_rows({"radius (cycles a side)": radius}, hits)
    return Finding(f"{model.title}: {passes}-pass ({stimuli.name})", "right answers (%)", pd.DataFrame(rows))


def kept(findings: dict[str, Finding], measure: str = "top-1") -> Finding:
    """Several models' curves of ``by_frequency`` in one, each as a share of its accuracy on the whole images, in percent.

    Intervals are those of the filtered images' accuracies, divided by that on whole ones, whose uncertainty is left out.

    Args:
        findings: by the name of each model, all low-pass or all high-pass.
    """
    tables = []
    for name, finding in findings.items():
        table = finding.table.query("measure == @measure").drop(columns="measure")
        whole = table["value"].iloc[0 if table.iloc[0, 0] == 0 else -1]
        if whole == 0:
            raise VitvizError(f"{name} is right on no whole image, so there is nothing to keep a share of.")
        table[["value", "low", "high"]] *= 100 / whole
        table.insert(1, "model", name)
        tables.append(table)
    return Finding("Share of whole images' right answers that is kept", f"{measure}, % of that on whole images",
                   pd.concat(tables, ignore_index=True))
