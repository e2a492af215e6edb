"""What every unit test finds: a cache of its own, fixed seeds and threads; and small models with random weights."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitviz_nb.models import cards
from vitviz_nb.models import loading as models
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.visualize import visualizer as visualizer_module

# CI machines have two cores, which two processes share; OMP_NUM_THREADS=1 is heeded.
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads())
torch.set_num_threads(THREADS)  # here, too, for what is made once a file
ARCHITECTURE = {
    "class": "timm.models.vision_transformer.VisionTransformer",
    "arguments": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 4},
}


@pytest.fixture(autouse=True)
def clean_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads what another, or the user, has cached; and each begins from the same random state."""
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / "vitviz_cache"))
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def tiny_vit() -> VisionModel:
    """A ViT of two blocks at 32 px: 4 x 4 patches and a CLS token, 128 units in each MLP."""
    return VisionModel(models.build(ARCHITECTURE), "tiny-vit", 32, class_names=["ant", "bee", "cat", "dog"], license="none")


@dataclass
class Shelf:
    """A folder of embedded models, as ``data/models`` is one, holding a model called "emoji-vit"."""

    folder: Path
    module: nn.Module

    @property
    def weights(self) -> Path:
        return self.folder / "emoji-vit.safetensors"

    @property
    def card(self) -> Path:
        return self.folder / "emoji-vit.json"

    def put(self, tensors: dict[str, Tensor], architecture: dict = ARCHITECTURE) -> None:
        """Write these weights in float16, and a card that is right about them."""
        save_file({key: value.half().contiguous() for key, value in tensors.items()}, self.weights)
        self.card.write_text(json.dumps({
            "name": "emoji-vit", "architecture": architecture, "image_size": 32, "mean": [0.5, 0.25, 0.5],
            "std": [0.5, 0.25, 0.125], "parameters": 30_000, "license": "CC BY 4.0", "class_names": ["ant", "bee", "cat", "dog"],
            "accuracy": {"unoccluded": {"n": 100, "top1": 0.25, "interval95": [0.175, 0.343]}},
            "recipe": {"styles": ["3d", "flat"]},
            "sha256": hashlib.sha256(self.weights.read_bytes()).hexdigest(),
        }))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """A small model with random weights in the place of the embedded ones."""
    folder = tmp_path / "models"
    folder.mkdir()
    shelf = Shelf(folder, models.build(ARCHITECTURE))
    shelf.put(shelf.module.state_dict())
    monkeypatch.setattr(cards, "models_dir", lambda: folder)
    return shelf


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of every step of the ascent, as they happen; reading a curve and scoring are not counted."""
    sizes, tokens = [], visualizer_module.tokens

    def counted(model, place, inputs, leak=0.0):
        if torch.is_grad_enabled():
            sizes.append(len(inputs))
        return tokens(model, place, inputs, leak)

    monkeypatch.setattr(visualizer_module, "tokens", counted)
    return sizes
