"""Weights of one's own: any number of classes, whatever training wrapped around them, and a sentence for what is not right."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

import vitviz_nb as vv
from vitviz_nb.utils.errors import VitvizError

NAME = "test_vit"  # 160 px, patches of 16 px


@pytest.fixture
def mine() -> torch.nn.Module:
    torch.manual_seed(1)
    return timm.create_model(NAME, num_classes=3).eval()


def under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in weights.items()}


def averaged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other weights, as of a network that is still training."""
    return {key: value + 1 for key, value in weights.items()}


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


WRAPPINGS = {  # what is around the weights in a file
    "Lightning": lambda weights: {"state_dict": under("model.", weights) | {"criterion.weight": torch.ones(3)}, "epoch": 3},
    "a backbone in a network in DataParallel": lambda weights: {"model": under("module.backbone.", weights)},
    "model_state_dict": lambda weights: {"model_state_dict": weights, "optimizer_state_dict": {"state": {}}},
    "net": lambda weights: {"net": under("module.", weights), "acc": 93.2},
    "torch.compile": lambda weights: under("_orig_mod.", weights),
    "two entries deep": lambda weights: {"net": {"state_dict": weights}},
    "an average beside": lambda weights: {"model": averaged(weights), "model_ema": weights},
    "timm's average": lambda weights: {"state_dict": averaged(weights), "state_dict_ema": under("module.", weights)},
    "an average among the names": lambda weights: under("model.", averaged(weights)) | under("model_ema.module.", weights),
    "DINO": lambda weights: {"student": under("module.backbone.", averaged(weights)), "teacher": under("backbone.", weights) | {
        "head.mlp.0.weight": torch.ones(2, 2), "head.last_layer.weight_v": torch.ones(2), "dino_head.mlp.0.bias": torch.ones(2)}},
    "a mask token and a decoder": lambda weights: weights | {
        "mask_token": torch.zeros(1, 64), "decoder_pos_embed": torch.zeros(1), "decoder_blocks.0.norm1.weight": torch.ones(4)},
    "NumPy scalars": lambda weights: {"state_dict": weights, "best": np.float64(0.5), "epoch": np.int64(3), "f1": np.float32(1)},
    "an early timm": lambda weights: weights | {"patch_embed.proj.weight": weights["patch_embed.proj.weight"].flatten(1)},
    "half precision": lambda weights: {key: value.half() for key, value in weights.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_what_training_wraps_around_weights_is_taken_off(wrapping: str, mine, tmp_path: Path):
    torch.save(WRAPPINGS[wrapping](mine.state_dict()), tmp_path / "mine.pth")
    found = vv.load(NAME, device="cpu", checkpoint=tmp_path / "mine.pth").module.state_dict()
    expected = {key: value.half().float() if "half" in wrapping else value for key, value in mine.state_dict().items()}
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_numpy_scalars_are_read_as_numpy_1_named_them(mine, tmp_path: Path):
    path, new, old = tmp_path / "mine.pth", b"numpy._core.multiarray", b"numpy.core.multiarray"
    torch.save({"state_dict": mine.state_dict(), "best": np.float64(0.5)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(new, old))
    assert old in path.read_bytes()
    assert vv.load(NAME, device="cpu", checkpoint=path).module.num_classes == 3


def test_position_embeddings_are_resampled_to_another_image_size(mine, tmp_path: Path):
    """A plane over the grid stays a plane: 10 x 10 patches of which each knows its column become 4 x 4."""
    weights, columns = mine.state_dict(), torch.arange(10.0).repeat(10)
    grid = weights["pos_embed"].shape[1] - 100  # tokens before the patches
    weights["pos_embed"] = torch.zeros_like(weights["pos_embed"])
    weights["pos_embed"][0, grid:] = columns[:, None]
    torch.save(weights, tmp_path / "mine.pth")
    model = vv.load(NAME, device="cpu", checkpoint=tmp_path / "mine.pth", image_size=64)
    assert model.image_size == 64 and model(torch.rand(2, 3, 64, 64)).shape == (2, 3)
    rows = model.module.pos_embed[0, grid:, 0].view(4, 4)
    assert torch.allclose(rows, rows[:1].expand(4, 4), atol=1e-4)
    assert torch.allclose(rows[0, 1:3], torch.tensor([3.25, 5.75]), atol=0.1)  # centers of columns: 10/4 (c + 1/2) - 1/2


def test_a_thousand_classes_have_imagenets_names(tmp_path: Path):
    save_file(timm.create_model(NAME, num_classes=1000).state_dict(), tmp_path / "mine.safetensors")
    assert vv.load(NAME, device="cpu", checkpoint=tmp_path / "mine.safetensors").class_names[0] == "tench"


def test_what_is_wrong_with_a_checkpoint_is_said(mine, tmp_path: Path):
    path = tmp_path / "mine.safetensors"
    with pytest.raises(VitvizError, match="There is no checkpoint .*mine.safetensors"):
        vv.load(NAME, device="cpu", checkpoint=path)
    for content, file in ((b"not weights", path), (b"", path), (b"", tmp_path / "empty.pth")):
        file.write_bytes(content)
        with pytest.raises(VitvizError, match=r"no checkpoint that can be read safely \(\w"):
            vv.load(NAME, device="cpu", checkpoint=file)
    save_file(mine.state_dict(), path)
    with pytest.raises(VitvizError, match="does not hold weights of test_vit2"):
        vv.load("test_vit2", device="cpu", checkpoint=path)
    with pytest.raises(VitvizError, match="3 classes, but 2 class_names were given"):
        vv.load(NAME, device="cpu", checkpoint=path, class_names=["ant", "bee"])
    with pytest.raises(VitvizError, match="class_names is a list of names"):
        vv.load(NAME, device="cpu", checkpoint=path, class_names=3)
    with pytest.raises(VitvizError, match="no model called 'test_vitt'.*test_vit"):
        vv.load("test_vitt", device="cpu", checkpoint=path)
    with pytest.raises(VitvizError, match="for timm's models; emoji-vit has its own"):
        vv.load("emoji-vit", device="cpu", checkpoint=path)


def without(weights: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if part not in key}


MISFITS = {  # what is wrong: how it is said
    "lacks a block": (lambda net: without(net.state_dict(), "blocks.1"), r"lacks blocks\.1\.norm1\.weight.* and \d+ more"),
    "a head of one's own": (lambda net: net.state_dict() | {"my_head.weight": torch.ones(2)}, r"has my_head\.weight, for which"),
    "a head beside the backbone": (lambda net: under("backbone.", without(net.state_dict(), "head")) | {
        "fc.weight": torch.ones(2, 64)}, r"has fc\.weight, for which test_vit has no place"),
    "another pooling": (lambda net: {key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key: value
                                     for key, value in net.state_dict().items()}, r"lacks norm\.weight.*has fc_norm\.weight"),
    "another patch size": (lambda net: net.state_dict() | {"patch_embed.proj.weight": torch.rand(64, 3, 8, 8)},
                           r"for another architecture or patch size \(patch_embed\.proj\.weight has shape \(64, 3, 8, 8\)"),
    "other channels": (lambda net: net.state_dict() | {"patch_embed.proj.weight": torch.rand(64, 1, 16, 16)},
                       r"it is of 1 channels, not 3"),
    "another width": (lambda net: timm.create_model(NAME, embed_dim=128).state_dict(), r"for another architecture"),
    "another library": (lambda net: {"encoder.layer.0.layernorm_before.weight": torch.ones(64)},
                        r"lacks cls_token.* and \d+ more, and has encoder\.layer\.0\.layernorm_before\.weight"),
    "two networks": (lambda net: under("a.", net.state_dict()) | under("b.", net.state_dict()), r"several networks, behind a"),
    "no weights": (lambda net: {"epoch": 3, "args": {"lr": 0.1}}, r"holds no weights: its entries are epoch, args"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_file_that_does_not_fill_the_network_is_refused_with_what_it_is(misfit: str, mine, tmp_path: Path):
    make, says = MISFITS[misfit]
    torch.save(make(mine), tmp_path / "mine.pth")
    with pytest.raises(VitvizError, match=says) as caught:
        vv.load(NAME, device="cpu", checkpoint=tmp_path / "mine.pth")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


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
