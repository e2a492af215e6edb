"""Models by name: embedded ones are checked before use, unknown ones answered with the nearest names."""

import json
import math
from pathlib import Path

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock
from torch import nn

from vitviz_nb.models import cards
from vitviz_nb.models import loading as models
from vitviz_nb.models.cards import build
from vitviz_nb.models.loading import list_models, load, load_from
from vitviz_nb.models.text_tower import TextTower
from vitviz_nb.models.vision_model import VisionModel, check_finite, plain_attention
from vitviz_nb.models.wrapping import imagenet_names
from vitviz_nb.utils.errors import VitvizError

TINY = "test_vit"  # timm's own smallest
SWIN = {"class": "timm.models.swin_transformer.SwinTransformer", "arguments": {
    "img_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 4, "num_classes": 4}}


def test_an_embedded_model_has_the_weights_and_facts_of_its_files(shelf):
    model = load("emoji-vit", device="cpu")
    expected = shelf.module.half().float().state_dict()
    found = model.module.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    assert all(value.dtype == torch.float32 for value in found.values())
    assert (model.name, model.title, model.image_size, model.trained) == ("emoji-vit", "emoji-vit", 32, True)
    assert model.class_names == ["ant", "bee", "cat", "dog"] and model.license == "CC BY 4.0"
    assert model.card == json.loads(shelf.card.read_text())


def test_embedded_models_are_listed_first(shelf):
    (shelf.folder / "emoji-alpha.json").write_text("{}")
    assert models.embedded_names() == ["emoji-vit", "emoji-alpha"]
    assert list_models("*test_vit*")[:2] == ["emoji-vit", "emoji-alpha"]
    assert any(name.startswith(f"{TINY}.") for name in list_models("*test_vit*")[2:])


def test_a_loaded_model_is_frozen_and_in_eval_mode(shelf):
    for model in (load(device="cpu"), load(TINY, pretrained=False, device="cpu")):
        assert not any(parameter.requires_grad for parameter in model.module.parameters())
        assert not any(module.training for module in model.module.modules())


def test_images_are_normalized_before_the_network_sees_them(shelf):
    model = load(device="cpu")
    images = torch.rand(2, 3, 32, 32)
    by_hand = torch.stack([(images[:, 0] - 0.5) / 0.5, (images[:, 1] - 0.25) / 0.25, (images[:, 2] - 0.5) / 0.125], 1)
    assert torch.allclose(model.normalize(images), by_hand, atol=1e-6)
    assert torch.allclose(model(images), model.module(by_hand), atol=1e-5)
    assert not torch.allclose(model(images), model.module(images), atol=1e-3)


def test_a_timm_model_keeps_its_own_normalization_size_and_license(shelf):
    config = timm.get_pretrained_cfg(TINY)
    model = load(TINY, pretrained=False, device="cpu")
    assert model.image_size == config.input_size[-1]
    assert model.mean.flatten().tolist() == pytest.approx(config.mean)
    assert model.std.flatten().tolist() == pytest.approx(config.std)
    assert model.license == config.license
    if model.module.num_classes == 1000:
        assert len(model.class_names) == 1000 and model.class_names[0] == "tench"


def test_random_weights_are_labeled_untrained_and_always_the_same(shelf):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = load(pretrained=False, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    second = load(pretrained=False, device="cpu")
    assert not first.trained and first.title == "emoji-vit (untrained)" and "(untrained)" in repr(first)
    assert first.weights_hash == second.weights_hash != load(device="cpu").weights_hash
    timms = load(TINY, pretrained=False, device="cpu")
    assert timms.title == f"{TINY} (untrained)" and "(untrained)" not in repr(load(device="cpu"))


def test_random_weights_need_no_weights_file(shelf):
    shelf.weights.unlink()
    assert not load(pretrained=False, device="cpu").trained


def test_a_tampered_weights_file_is_not_loaded(shelf):
    content = bytearray(shelf.weights.read_bytes())
    content[-1] ^= 1
    shelf.weights.write_bytes(content)
    with pytest.raises(VitvizError, match=r"emoji-vit\.safetensors is not the file its card describes .*git checkout"):
        load(device="cpu")


def test_a_missing_weights_file_is_named(shelf):
    shelf.weights.unlink()
    with pytest.raises(VitvizError, match=r"emoji-vit\.safetensors should come with the kit\. Restore it"):
        load(device="cpu")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(shelf, value: float):
    tensors = shelf.module.state_dict()
    tensors["blocks.1.mlp.fc1.weight"][3, 4] = value
    shelf.put(tensors)
    with pytest.raises(VitvizError, match=r"emoji-vit contain NaN or infinite numbers \(in blocks\.1\.mlp\.fc1\.weight\)"):
        load(device="cpu")


@pytest.mark.parametrize(("name", "nearest"), [
    ("emoji-vti", "emoji-vit"), ("vit_base_patch16_24", "vit_base_patch16_224"), ("resnet5", "resnet50"),
])
def test_a_misspelt_name_is_answered_with_the_nearest(shelf, name: str, nearest: str):
    with pytest.raises(VitvizError, match=rf"no model called '{name}'\. Did you mean [^?]*\b{nearest}\b[^?]*\?.* emoji-vit;"):
        load(name)


@pytest.mark.parametrize(("name", "meant"), [
    ("ViT-B/16", "vit_base_patch16_224.augreg2_in21k_ft_in1k"), ("ViT-B-32", "vit_base_patch32_224.augreg_in21k_ft_in1k"),
    ("dinov2_vits14", "vit_small_patch14_dinov2.lvd142m"), ("facebook/dinov2-small", "vit_small_patch14_dinov2.lvd142m"),
    ("facebook/dinov2-with-registers-base", "vit_base_patch14_reg4_dinov2.lvd142m"),
    ("dino_vits16", "vit_small_patch16_224.dino"),
    ("google/vit-base-patch16-224", "vit_base_patch16_224.augreg2_in21k_ft_in1k"),
    ("openai/clip-vit-base-patch32", "vit_base_patch32_clip_quickgelu_224.openai"),
    ("microsoft/swin-tiny-patch4-window7-224", "swin_tiny_patch4_window7_224.ms_in1k"),
    ("microsoft/resnet-50", "resnet50.a1_in1k"),
    ("facebook/convnext-tiny-224", "convnext_tiny.in12k_ft_in1k"), ("vit_l_16", "vit_large_patch16_224.augreg_in21k_ft_in1k"),
])
def test_a_name_of_another_library_is_answered_with_timms(shelf, name: str, meant: str):
    with pytest.raises(VitvizError, match=rf"no model called '{name}'\. Did you mean {meant}\b") as caught:
        load(name)
    assert ("vv.wrap(module)" in str(caught.value)) == (name[0].islower() and "/" in name)


@pytest.mark.parametrize(("name", "size"), [("test_vit", 64), ("test_resnet", 96)])
def test_a_network_is_built_for_the_size_that_is_asked_for(name: str, size: int):
    model = load(name, pretrained=False, device="cpu", image_size=size)
    assert model.image_size == size and model(torch.rand(1, 3, size, size)).shape[0] == 1
    assert load(name, pretrained=False, device="cpu", image_size=size).state() == model.state()
    assert load(name, pretrained=False, device="cpu").state() != model.state()


@pytest.mark.parametrize(("name", "size", "says"), [
    ("test_vit", 100, "patches of 16 px, which do not fill 100 px; give an image_size such as 96 or 112"),
    ("test_vit", 8, "which do not fill 8 px; give an image_size such as 16 or 16"),
    ("test_vit", 64.5, "image_size is a whole number from 1 to 8192, got 64.5"), ("emoji-vit", 96, "emoji-vit has its own"),
    ("levit_128", 4, "levit_128 cannot be"),
])
def test_a_size_that_a_network_does_not_take_is_refused(name: str, size, says: str):
    with pytest.raises(VitvizError, match=says):
        load(name, pretrained=False, device="cpu", image_size=size)


def test_a_name_like_no_other_is_answered_with_the_embedded_ones(shelf):
    with pytest.raises(VitvizError) as caught:
        load("xxxxxxxxxxxx")
    assert "Did you mean" not in str(caught.value) and "Embedded models: emoji-vit;" in str(caught.value)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "hpu"])
def test_a_device_that_is_not_there_is_refused(shelf, device: str):
    with pytest.raises(VitvizError, match=rf"device '{device}' cannot be used here .*this machine has "):
        load(device=device)


_FOREIGN = ["torch.nn.Linear", "os.system", "timm.layers.Mlp", "timm.models_evil.Class", "system", "timm.create_model",
            "timm.models._builder.load_state_dict_from_url", "timm.models.vision_transformer.build_model_with_cfg"]


def resnet(block) -> dict:
    return {"class": "timm.models.resnet.ResNet",
            "arguments": {"block": block, "layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "num_classes": 4}}


@pytest.mark.parametrize("name", _FOREIGN)
def test_a_card_can_only_build_classes_of_the_closed_list(name: str):
    with pytest.raises(VitvizError, match=rf"can only build .*not '{name}'"):
        build({"class": name, "arguments": {"url": "http://127.0.0.1:9/x.pth", "weights_only": False}})
    with pytest.raises(VitvizError, match=rf"can only build .*not '{name}'"):
        build(resnet(name))


def test_a_model_file_runs_no_code(tmp_path: Path):
    """A card that named timm's downloader with ``weights_only: false`` once fetched a pickle and ran it."""
    ran, evil = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save(_Touch(ran), evil)
    card = _card({"class": "timm.models._builder.load_state_dict_from_url",
                  "arguments": {"url": evil.as_uri(), "weights_only": False, "model_dir": str(tmp_path)}})
    (tmp_path / "x.json").write_text(json.dumps(card))
    with pytest.raises(VitvizError, match="can only build"):
        load(str(tmp_path / "x.json"), pretrained=False)
    assert not ran.exists()


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _card(architecture) -> dict:
    return {"architecture": architecture, "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "class_names": ["a"],
            "license": "none", "recipe": {}, "sha256": ""}


def test_a_class_among_a_cards_arguments_is_named_by_its_path():
    module = build(resnet("timm.models.resnet.BasicBlock"))
    assert type(module.layer1[0]) is BasicBlock and module.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 4)


@pytest.mark.parametrize(("content", "says"), [
    ("", "cannot be read"), ("[]", "no valid architecture"), ("{}", "no valid architecture, image_size"),
    (json.dumps(_card({})), "A card's architecture is"),
    (json.dumps(_card({"class": SWIN["class"], "arguments": {"nonsense": 1}})), "arguments do not fit"),
    (json.dumps(_card({"class": SWIN["class"], "arguments": {"embed_dim": 10**9}})), "numbers up to 4096"),
])
def test_a_card_that_lacks_something_is_told_in_one_sentence(content: str, says: str, tmp_path: Path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(VitvizError, match=says):
        load(str(tmp_path / "x.json"), pretrained=False)


def test_weights_of_another_architecture_than_the_cards_are_refused(shelf):
    shelf.put({"head.weight": torch.zeros(2, 2)})
    with pytest.raises(VitvizError, match="do not fit its card"):
        load(device="cpu")


def test_imagenet_has_a_thousand_different_names():
    names = imagenet_names()
    assert len({name.casefold() for name in names}) == 1000
    assert names[134] != names[517] and "crane" in names[134] and "crane" in names[517]
    assert names[0] == "tench" and names[264].startswith("Cardigan") and names[474] == "cardigan"


def test_a_model_can_be_read_from_any_folder(shelf, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cards, "models_dir", lambda: Path("/nowhere"))
    found = load_from(shelf.folder, "emoji-vit")
    assert torch.equal(found.module.head.weight, shelf.module.head.weight.half().float()) and found.trained
    assert found.card == json.loads(shelf.card.read_text()) == cards.check_embedded("emoji-vit", shelf.folder)
    shelf.weights.write_bytes(b"changed")
    with pytest.raises(VitvizError, match="is not the file its card describes"):
        load_from(shelf.folder, "emoji-vit")
    assert not load_from(shelf.folder, "emoji-vit", pretrained=False).trained


def test_attention_written_out_on_a_cpu_gives_the_same_answers():
    module, images = build(SWIN).eval(), torch.rand(2, 3, 32, 32)
    parts = [part for part in module.modules() if hasattr(part, "fused_attn")]
    for part in parts:
        part.fused_attn = True
    fused = module(images)
    plain_attention(module, "cpu")
    assert len(parts) == 2 and not any(part.fused_attn for part in parts)
    assert torch.allclose(module(images), fused, atol=1e-5)
    assert fused.abs().max() > 1e-3  # else nothing was tested
    plain_attention(module, torch.device("cuda", 0))
    assert all(part.fused_attn for part in parts)


def test_every_model_on_a_cpu_has_its_attention_written_out(shelf):
    for model in (load(device="cpu"), load(TINY, pretrained=False, device="cpu")):
        assert [part.fused_attn for part in model.module.modules() if hasattr(part, "fused_attn")].count(True) == 0


# Models with a text tower


NAMES = ["ant", "bee", "cat", "dog"]


def with_text(module: nn.Module, styles=("flat", "line"), seed: int = 1) -> VisionModel:
    torch.manual_seed(seed)
    text = TextTower(sorted({"a", "flat", "icon", "line", "drawing", "of", *NAMES}), 4)
    return VisionModel(module, "tiny-clip", 32, class_names=NAMES, text=text, styles=styles)


def test_a_model_with_a_text_tower_is_frozen_whole_and_answers_with_similarities(tiny_vit: VisionModel):
    model, images = with_text(tiny_vit.module), torch.rand(3, 3, 32, 32)
    assert not any(p.requires_grad for p in model.text.parameters()) and not model.text.training
    points = model.module(images * 2 - 1)
    for k, name in enumerate(NAMES):
        prompt = model.text([f"a {name}", f"a flat icon of {name}", f"a line drawing of {name}"]).mean(0)
        assert torch.allclose(model(images)[:, k], torch.cosine_similarity(points, prompt[None]) * math.exp(2.3), atol=1e-4)


def test_a_style_drawn_twice_as_often_counts_once_among_the_prompts(tiny_vit: VisionModel):
    images = torch.rand(2, 3, 32, 32)
    once, twice = with_text(tiny_vit.module), with_text(tiny_vit.module, ("flat", "line", "flat"))
    assert torch.allclose(once(images), twice(images), atol=1e-5)
    assert not torch.allclose(once(images), with_text(tiny_vit.module, ("flat",))(images), atol=1e-3)


def test_a_model_with_a_text_tower_can_be_followed_back_after_a_look_without_gradients(tiny_vit: VisionModel):
    model, images = with_text(tiny_vit.module), torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        model(images)
    images.requires_grad_()
    model(images)[0, 0].backward()
    assert images.grad.abs().max() > 0


def test_a_text_tower_moves_with_its_model_also_after_its_first_answer(tiny_vit: VisionModel):
    model = with_text(tiny_vit.module)
    model(torch.rand(1, 3, 32, 32))
    model.to("meta")  # a device that every machine has
    assert model.text.place.device.type == "meta" == model(torch.rand(1, 3, 32, 32)).device.type


def test_the_hash_follows_the_text_tower_too(tiny_vit: VisionModel):
    assert with_text(tiny_vit.module).weights_hash == with_text(tiny_vit.module).weights_hash
    assert with_text(tiny_vit.module, seed=2).weights_hash != with_text(tiny_vit.module).weights_hash
    assert with_text(tiny_vit.module, ("flat",)).weights_hash != with_text(tiny_vit.module).weights_hash


def test_a_text_tower_that_is_not_finite_is_refused(tiny_vit: VisionModel):
    model = with_text(tiny_vit.module)
    model.text.head.weight.data[0, 0] = math.nan
    with pytest.raises(VitvizError, match=r"tiny-clip contain NaN or infinite numbers \(in .*head\.weight\)"):
        VisionModel(model.module, "tiny-clip", 32, class_names=NAMES, text=model.text, styles=("flat",))


def test_the_hash_tells_models_apart_that_share_their_weights(tiny_vit: VisionModel):
    """timm builds the same CLIP weights with two activation functions, under two names; caches must not mix them up."""
    def sibling(**changes) -> str:
        arguments = {"name": "tiny-vit", "image_size": 32} | changes
        return VisionModel(tiny_vit.module, **arguments).weights_hash

    assert sibling() == tiny_vit.weights_hash
    assert len({sibling(), sibling(name="tiny-vit-quickgelu"), sibling(mean=(0.4, 0.5, 0.5)), sibling(std=(1, 1, 1))}) == 4


def test_the_hash_follows_every_weight(tiny_vit: VisionModel):
    before = tiny_vit.weights_hash
    tiny_vit.module.blocks[1].attn.proj.bias.data[0] += 1e-3
    assert VisionModel(tiny_vit.module, "tiny-vit", 32).weights_hash != before


def test_a_module_without_weights_lies_on_the_cpu():
    assert VisionModel(nn.Flatten(), "flat", 8).device.type == "cpu"


def test_an_infinite_bound_of_a_network_is_no_damaged_weight(tiny_vit):
    """As the clipping layers of timm's Gemma have, until they are trained."""
    tiny_vit.module.register_buffer("bound", torch.tensor(-math.inf))
    check_finite(tiny_vit.module, "net")
    for damaged in (torch.tensor(math.nan), torch.tensor([1.0, math.inf])):
        tiny_vit.module.bound = damaged
        with pytest.raises(VitvizError, match=r"in bound\)"):
            check_finite(tiny_vit.module, "net")
