"""Language supervision: captions shortened at random, and the contrastive loss of images and captions (Radford et al. 2021)."""

import re

import torch
import torch.nn.functional as F

_FIRST = re.compile(r"(a|two|three) (?:(small|large) )?(\S+(?: \S+)? of) (.+)")  # count, size, style, concept


def shorten(caption: str, said: float = 0.3) -> str:
    """A caption reduced to concept and count; each further fact (size, style, …) stays with probability ``said``.

    With every fact in every caption, a scene's own could be found without knowing its concept.
    """
    first, *others = caption.split(", ")
    count, size, style, concept = _FIRST.fullmatch(first).groups()
    u = torch.rand(2 + len(others)).tolist()
    words = [count, *[size] * bool(size and u[0] < said), *[style] * (u[1] < said), concept]
    return ", ".join([" ".join(words), *(fact for fact, v in zip(others, u[2:], strict=True) if v < said)])


def contrast(images: torch.Tensor, words: torch.Tensor, captions: list[str], log_scale: torch.Tensor) -> torch.Tensor:
    """Contrastive loss of N images' embeddings (N, width) and M >= N captions' (M, width), the first N being the images' own.

    Images with equal captions count as each other's matches.
    """
    logits = log_scale.clamp(max=4.6).exp() * F.normalize(images.float(), dim=-1) @ words.T
    n = len(images)
    first = {}
    number = torch.tensor([first.setdefault(caption, i) for i, caption in enumerate(captions)], device=logits.device)
    own = (number[:n, None] == number).float()
    scenes, theirs = own / own.sum(1, keepdim=True), own[:, :n] / own[:, :n].sum(1, keepdim=True)
    return (F.cross_entropy(logits, scenes) + F.cross_entropy(logits[:, :n].T, theirs)) / 2
