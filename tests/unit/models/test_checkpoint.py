"""Weights of one's own: any number of classes, safetensors or torch's format, and a sentence for whatever is not right."""

import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import vitviz_nb as vv
from vitviz_nb.utils.errors import VitvizError

NAME = "test_vit"


@pytest.fixture
def mine() -> torch.nn.Module:
    torch.manual_seed(1)
    return timm.create_model(NAME, num_classes=3).eval()


@pytest.mark.parametrize("kind", ["safetensors", "torch", "training"])
def test_own_weights_are_loaded_with_their_own_classes(kind: str, mine, tmp_path: Path):
    path = tmp_path / ("mine.safetensors" if kind == "safetensors" else "mine.pth")
    if kind == "safetensors":
        save_file(mine.state_dict(), path)
    else:
        torch.save(mine.state_dict() if kind == "torch" else {"epoch": 3, "state_dict": mine.state_dict()}, path)
    model = vv.load(NAME, device="cpu", checkpoint=path, class_names=["ant", "bee", "cat"])
    images = torch.rand(2, 3, model.image_size, model.image_size)
    assert torch.allclose(model(images), mine(model.normalize(images)), atol=1e-5)
    assert model.class_names == ["ant", "bee", "cat"] and model.trained and model.name == NAME
    assert vv.load(NAME, device="cpu", checkpoint=str(path)).class_names is None


def test_a_thousand_classes_have_imagenets_names(tmp_path: Path):
    save_file(timm.create_model(NAME, num_classes=1000).state_dict(), tmp_path / "mine.safetensors")
    assert vv.load(NAME, device="cpu", checkpoint=tmp_path / "mine.safetensors").class_names[0] == "tench"


def test_what_is_wrong_with_a_checkpoint_is_said(mine, tmp_path: Path):
    path = tmp_path / "mine.safetensors"
    with pytest.raises(VitvizError, match="There is no checkpoint .*mine.safetensors"):
        vv.load(NAME, device="cpu", checkpoint=path)
    path.write_bytes(b"not weights")
    with pytest.raises(VitvizError, match="no checkpoint that can be read safely"):
        vv.load(NAME, device="cpu", checkpoint=path)
    save_file(mine.state_dict(), path)
    with pytest.raises(VitvizError, match="does not hold weights of test_vit2"):
        vv.load("test_vit2", device="cpu", checkpoint=path)
    with pytest.raises(VitvizError, match="3 classes, but 2 class_names were given"):
        vv.load(NAME, device="cpu", checkpoint=path, class_names=["ant", "bee"])
    with pytest.raises(VitvizError, match="class_names is a list of names"):
        vv.load(NAME, device="cpu", checkpoint=path, class_names=3)
    with pytest.raises(VitvizError, match="no model called 'test_vitt'.*test_vit"):
        vv.load("test_vitt", device="cpu", checkpoint=path)


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"head.weight": Trap()}))
    with pytest.raises(VitvizError, match="no checkpoint that can be read safely"):
        vv.load(NAME, device="cpu", checkpoint=tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_model_trained_here_is_loaded_by_its_card(shelf):
    card = shelf.folder / "emoji-vit.json"
    assert vv.load(str(card), device="cpu").weights_hash == vv.load("emoji-vit", device="cpu").weights_hash
    with pytest.raises(VitvizError, match="card .*gone.json cannot be read"):
        vv.load(str(shelf.folder / "gone.json"), device="cpu")
