"""The text tower of ``emoji-clip``: captions embedded in the space of its images (Radford et al. 2021)."""

import re

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

PROMPTS = {"3d": "a 3D model of {}", "cartoon": "a cartoon of {}", "flat": "a flat icon of {}", "line": "a line drawing of {}",
           "word": "a written word of {}"}
_LENGTH = 32  # words of a caption that are read; the longest of Emoji World has 30
_UNKNOWN = 1  # 0 fills a caption up


class TextTower(nn.Module):
    """Two transformer layers over whole words; a caption's embedding is the mean over its tokens.

    Args:
        words: the vocabulary; other words map to one unknown token.
        width: of an embedding, the same as the image tower's.

    Attributes:
        log_scale: logarithm of the factor between a cosine similarity and a logit.
    """

    def __init__(self, words: list[str], width: int):
        super().__init__()
        self.words = list(words)
        self._number = {word: i + 2 for i, word in enumerate(self.words)}
        self.embed = nn.Embedding(len(self.words) + 2, width)
        self.place = nn.Parameter(0.02 * torch.randn(_LENGTH, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.tensor(2.3))
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, captions: list[str]) -> torch.Tensor:
        """Embeddings (N, width) of unit length."""
        rows = [[self._number.get(word, _UNKNOWN) for word in split(caption)][:_LENGTH] or [_UNKNOWN] for caption in captions]
        longest = max(map(len, rows))
        numbers = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.place.device)
        there = numbers > 0
        with sdpa_kernel(SDPBackend.MATH):  # on a CPU the fused kernel's backward pass is four times slower
            x = self.layers(self.embed(numbers) + self.place[:longest], src_key_padding_mask=~there)
        x = (self.norm(x) * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        return F.normalize(self.head(x).float(), dim=-1)


def split(caption: str) -> list[str]:
    """The words of a caption, in lower case."""
    return re.findall(r"[^\s,:]+", caption.lower())


@torch.inference_mode(False)  # else no gradient could pass the embeddings later
@torch.no_grad()
def class_embeddings(tower: TextTower, names: list[str], styles) -> torch.Tensor:
    """Zero-shot classifier (classes, width): mean embedding of each name in a plain prompt and one per style, scaled."""
    prompts = ["a {}", *(PROMPTS[style] for style in styles)]
    embeddings = sum(tower([prompt.format(name) for name in names]) for prompt in prompts)
    return F.normalize(embeddings, dim=-1) * tower.log_scale.clamp(max=4.6).exp()
