"""Networks of other libraries, small and with random weights, through ``vv.wrap``: neurons, positions, a picture, top images.

What each promises comes from its configuration: blocks, hidden neurons of their MLPs, tokens before the patches, patches.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vitviz_nb as vv
from vitviz_nb.models.reading import activations
from vitviz_nb.models.sites import find_site, find_sites
from vitviz_nb.models.vision_model import VisionModel

transformers = pytest.importorskip("transformers", reason="pip install -e '.[pretrained]'")
torchvision = pytest.importorskip("torchvision")
open_clip = pytest.importorskip("open_clip", reason="pip install -e '.[pretrained]'")
peft = pytest.importorskip("peft", reason="pip install -e '.[pretrained]'")

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
TINY = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 32,
        "patch_size": 8}
LABELS = {0: "ant", 1: "bee", 2: "cat"}


@dataclass
class Case:
    """A network, and what its configuration says of it; ``size``: of its input, where it takes any."""

    make: Callable[[], nn.Module]
    units: list[int]
    prefix: int = 1
    grid: tuple[int, int] | list[tuple[int, int]] | None = (4, 4)
    kind: str = "mlp"
    size: int | None = None
    classes: int | None = None


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.num_heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class Block(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(width), Attention(width, 2), nn.LayerNorm(width), \
            SwiGLU(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, size: int, patch: int, width: int):
        super().__init__()
        self.img_size, self.patch_size, self.proj = (size, size), (patch, patch), nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Official(nn.Module):
    """As the class in the official repository of DINOv2, with registers, SwiGLU and a dict of features inside."""

    def __init__(self, size: int = 32, patch: int = 8, width: int = 32, hidden: int = 40, depth: int = 2, registers: int = 4):
        super().__init__()
        self.patch_embed = PatchEmbed(size, patch, width)
        self.num_register_tokens = registers
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) / 8)
        self.register_tokens = nn.Parameter(torch.randn(1, registers, width) / 8)
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) / 8)
        self.blocks, self.norm, self.head = nn.ModuleList(Block(width, hidden) for _ in range(depth)), nn.LayerNorm(width), \
            nn.Identity()

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], 1) + self.pos_embed
        x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], 1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return {"x_norm_clstoken": x[:, 0], "x_norm_patchtokens": x[:, 1 + self.num_register_tokens:]}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x)["x_norm_clstoken"])


def clip_tower() -> nn.Module:
    return open_clip.model.CLIP(embed_dim=16, vision_cfg={"image_size": 32, "patch_size": 8, "width": 32, "layers": 2,
                                                          "head_width": 16}, text_cfg={
        "width": 16, "heads": 2, "layers": 1, "vocab_size": 100, "context_length": 8}, quick_gelu=True).visual


def lora() -> nn.Module:
    config = peft.LoraConfig(target_modules=["query", "dense"], r=2)
    return peft.get_peft_model(transformers.ViTModel(transformers.ViTConfig(**TINY)), config)


def checkpointing(model: nn.Module) -> nn.Module:
    model.gradient_checkpointing_enable()
    return model


CASES = {
    "transformers ViTModel": Case(lambda: transformers.ViTModel(transformers.ViTConfig(**TINY)), [48, 48]),
    "transformers ViTForImageClassification": Case(lambda: transformers.ViTForImageClassification(transformers.ViTConfig(
        **TINY, id2label=LABELS, label2id={name: i for i, name in LABELS.items()})), [48, 48], classes=3),
    "transformers CLIPVisionModel": Case(lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TINY)), [48, 48]),
    "transformers Dinov2Model": Case(lambda: transformers.Dinov2Model(transformers.Dinov2Config(
        **{**TINY, "intermediate_size": None}, mlp_ratio=2)), [64, 64]),
    "transformers Dinov2Model, SwiGLU": Case(lambda: transformers.Dinov2Model(transformers.Dinov2Config(
        **{**TINY, "intermediate_size": None}, mlp_ratio=2, use_swiglu_ffn=True)), [48, 48]),
    "transformers Swinv2Model": Case(lambda: transformers.Swinv2Model(transformers.Swinv2Config(
        image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)), [64, 128], 0,
        [(8, 8), (4, 4)]),
    "torchvision vit_b_16": Case(lambda: torchvision.models.vit_b_16(image_size=64), 12 * [3072], classes=1000),
    "torchvision swin_t": Case(lambda: torchvision.models.swin_t(), [384] * 2 + [768] * 2 + [1536] * 6 + [3072] * 2, 0,
                               [(16, 16)] * 2 + [(8, 8)] * 2 + [(4, 4)] * 6 + [(2, 2)] * 2, size=64, classes=1000),
    "torchvision convnext_tiny": Case(lambda: torchvision.models.convnext_tiny(),
                                      [384] * 3 + [768] * 3 + [1536] * 9 + [3072] * 3, 0,
                                      [(16, 16)] * 3 + [(8, 8)] * 3 + [(4, 4)] * 9 + [(2, 2)] * 3, size=64, classes=1000),
    "torchvision resnet50": Case(lambda: torchvision.models.resnet50(), [2048], 0, (2, 2), "channel", 64, 1000),
    "torchvision googlenet": Case(lambda: torchvision.models.googlenet(init_weights=False), [128], 0, (2, 2), "channel", 64,
                                  1000),
    "open_clip's tower": Case(clip_tower, [128, 128]),
    "the official DINOv2": Case(Official, [40, 40], 5),
    "LoRA, merged": Case(lambda: lora().merge_and_unload(), [48, 48]),
    "gradient checkpointing": Case(lambda: checkpointing(transformers.ViTModel(transformers.ViTConfig(**TINY))), [48, 48]),
    "compiled": Case(lambda: torch.compile(Official()), [40, 40], 5),
    "double precision": Case(lambda: Official().double(), [40, 40], 5),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def model(case: Case) -> VisionModel:
    torch.manual_seed(1)
    return vv.wrap(case.make(), image_size=case.size, **HALF)


def images(model: VisionModel, n: int = 3) -> Tensor:
    return torch.rand(n, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(2))


def test_it_gives_logits_or_features_of_images(case: Case, model: VisionModel):
    with torch.no_grad():
        found = model(images(model))
    assert found.dim() == 2 and len(found) == 3 and found.isfinite().all()
    assert case.classes in (None, found.shape[1])
    assert model.class_names == (list(LABELS.values()) if case.classes == 3 else None)
    if case.classes:
        assert torch.allclose(activations(model, "logit", images(model))[0], found, atol=1e-4)


def test_its_neurons_are_those_that_its_configuration_says(case: Case, model: VisionModel):
    own = find_site(model).kind
    there = find_sites(model)[own]
    assert own == case.kind
    if own == "channel":  # of a CNN, whose layers its configuration does not count
        there = there[-1:]
    assert [site.units for site in there] == case.units
    assert {site.prefix for site in there} == {case.prefix}
    assert [site.grid for site in there] == (case.grid if isinstance(case.grid, list) else [case.grid] * len(there))


def test_its_state_is_known_and_the_same_after_a_pass(model: VisionModel):
    before = model.state()
    activations(model, None, images(model))
    assert before is not None and model.state() == before


def test_two_steps_change_the_activation_and_the_most_activating_image_comes_first(case: Case, model: VisionModel):
    shown = images(model, 6)
    one, two = (vv.Visualizer(model, vv.Recipe(steps=steps, copies=1), images=shown, keep=False).render(-1, [0, 3]).pictures
                for steps in (1, 2))
    assert two.shape == (2, 3, model.image_size, model.image_size)
    before, after = (activations(model, None, pictures.float())[-1][[0, 1], [0, 3]] for pictures in (one, two))
    assert (before != after).any()  # one of a CNN may be dead
    best, by_hand = vv.top_images(model, -1, 0, images=shown, k=6), activations(model, None, shown)[-1][:, 0]
    assert best.activations == sorted(best.activations, reverse=True)
    assert torch.allclose(torch.tensor(best.activations), by_hand[best.indices].float(), rtol=1e-4, atol=1e-6)
    assert best.maps.shape[1:] == find_site(model).grid


def test_adapters_are_merged_by_who_made_them():
    with pytest.raises(vv.VitvizError, match=r"adapters of peft; wrap what module\.merge_and_unload\(\) returns"):
        vv.wrap(lora(), **HALF)


def test_a_whole_clip_is_wrapped_by_its_image_tower():
    text = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50,
            "bos_token_id": 0, "eos_token_id": 1}
    whole = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=TINY))
    with pytest.raises(vv.VitvizError, match=r"Wrap its image tower alone: vv\.wrap\(module\.vision_model\)"):
        vv.wrap(whole, image_size=32, **HALF)
    assert vv.wrap(whole.vision_model, image_size=32, **HALF)(torch.rand(1, 3, 32, 32)).shape == (1, 32)
