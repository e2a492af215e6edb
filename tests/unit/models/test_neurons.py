"""Where neurons are, in networks of any library's layout: what the layer that closes an MLP is given, at squares of the image."""

from collections import OrderedDict
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.models import cait, hiera, mlp_mixer, nest, swin_transformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import vitviz_nb as vv
from vitviz_nb.models.reading import activations, tokens
from vitviz_nb.models.sites import KINDS, find_site, find_sites
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Gated(nn.Module):
    """SwiGLU by two layers."""

    def __init__(self):
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class Packed(nn.Module):
    """SwiGLU by one layer of twice the width, as in DINOv2."""

    def __init__(self):
        super().__init__()
        self.w12, self.w3 = nn.Linear(8, 48), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class Adapted(nn.Module):
    """A layer with LoRA's two beside it."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up, self.act, self.fc2 = (nn.Linear(8, 24), nn.Linear(8, 2), nn.Linear(2, 24), nn.ReLU(True),
                                                            nn.Linear(24, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.base(x) + 0.5 * self.up(self.down(x))))


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Split(nn.Module):
    """Hugging Face's layer: the MLP in two modules, the second of which adds the residual stream."""

    def __init__(self):
        super().__init__()
        self.intermediate, self.output = nn.Module(), nn.Module()
        self.intermediate.dense, self.output.dense = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.output.dense(F.gelu(self.intermediate.dense(x)))


# An MLP, the path of the layer that closes it, and its hidden units written out.
MLPS: dict[str, tuple[Callable[[], nn.Module], str, Callable[[nn.Module, Tensor], Tensor]]] = {
    "functional": (Functional, "fc2", lambda mlp, x: F.gelu(mlp.fc1(x))),
    "torchvision": (lambda: torchvision.ops.MLP(8, [24, 8], activation_layer=nn.GELU, inplace=None), "3",
                    lambda mlp, x: F.gelu(mlp[0](x))),
    "vit-pytorch": (lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 24), nn.GELU(), nn.Dropout(), nn.Linear(24, 8)), "4",
                    lambda mlp, x: F.gelu(mlp[1](mlp[0](x)))),
    "open_clip": (lambda: nn.Sequential(OrderedDict(c_fc=nn.Linear(8, 24), gelu=QuickGELU(), c_proj=nn.Linear(24, 8))), "c_proj",
                  lambda mlp, x: mlp.c_fc(x) * torch.sigmoid(1.702 * mlp.c_fc(x))),
    "hugging face": (Split, "output.dense", lambda mlp, x: F.gelu(mlp.intermediate.dense(x))),
    "swiglu": (Gated, "w3", lambda mlp, x: F.silu(mlp.w1(x)) * mlp.w2(x)),
    "swiglu, packed": (Packed, "w3", lambda mlp, x: F.silu(mlp.w12(x)[..., :24]) * mlp.w12(x)[..., 24:]),
    "lora": (Adapted, "fc2", lambda mlp, x: (mlp.base(x) + 0.5 * mlp.up(mlp.down(x))).relu()),
}


class Block(nn.Module):
    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.query, self.norm, self.mlp = nn.Linear(8, 8), nn.LayerNorm(8), mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.1 * (self.query(x) @ x.transpose(1, 2)).softmax(-1) @ x
        self.seen = self.norm(x)
        return x + self.mlp(self.seen)


class Transformer(nn.Module):
    """Two blocks over 4 x 4 patches of 32 px, and two prefix tokens that it does not mention."""

    def __init__(self, mlp: Callable[[], nn.Module]):
        super().__init__()
        self.stem, self.prefix = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.randn(1, 2, 8))
        self.layers, self.head = nn.ModuleList(Block(mlp()) for _ in range(2)), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.cat([self.prefix.expand(len(images), -1, -1), self.stem(images).flatten(2).transpose(1, 2)], 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


def inputs(n: int = 2, size: int = 32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layout", MLPS)
def test_neurons_are_what_the_layer_that_closes_an_mlp_is_given_in_any_librarys_layout(layout: str):
    build, path, hidden = MLPS[layout]
    model = VisionModel(Transformer(build), layout, 32)
    found = find_sites(model)
    assert [(s.path, s.units, s.prefix, s.grid) for s in found["mlp"]] == [
        (f"layers.{i}.mlp.{path}", 24, 2, (4, 4)) for i in range(2)]
    assert [(s.path, s.units, s.grid) for s in found["residual"]] == [(f"layers.{i}", 8, (4, 4)) for i in range(2)]
    model.module(inputs())
    for site in found["mlp"]:
        block = model.module.layers[site.layer]
        expected = hidden(block.mlp, block.seen)
        assert torch.allclose(tokens(model, site, inputs()), expected[:, 2:], atol=1e-6)
        assert torch.allclose(tokens(model, found["cls"][site.layer], inputs()), expected[:, :1], atol=1e-6)


@pytest.mark.parametrize(("layout", "before"), [
    ("torchvision", lambda mlp, x: mlp[0](x)), ("open_clip", lambda mlp, x: mlp.c_fc(x)), ("functional", None), ("swiglu", None)])
def test_a_leak_is_added_where_a_module_makes_the_units_from_one_layer_and_ignored_elsewhere(layout: str, before):
    build, _, hidden = MLPS[layout]
    model = VisionModel(Transformer(build), layout, 32)
    found = tokens(model, find_site(model, 1), inputs(), leak=0.25)
    model.module(inputs())
    block = model.module.layers[1]
    expected = hidden(block.mlp, block.seen) + (0.25 * before(block.mlp, block.seen) if before else 0)
    assert torch.allclose(found, expected[:, 2:], atol=1e-6)


# The trunk alone


def test_pooling_and_class_attention_blocks_are_no_layers():
    siglip = VisionTransformer(32, 8, embed_dim=32, depth=2, num_heads=2, num_classes=4, class_token=False, global_pool="map")
    two_stages = cait.Cait(32, 8, embed_dim=32, depth=2, num_heads=2, num_classes=4)
    for module, last in ((siglip, "blocks.1.mlp.fc2"), (two_stages, "blocks.1.mlp.fc2")):
        found = find_sites(VisionModel(module, "pooled", 32))
        assert {len(found[kind]) for kind in ("mlp", "query", "key", "value", "attention", "residual")} == {2}
        assert found["mlp"][-1].path == last and found["mlp"][-1].grid == (4, 4)


def test_relative_position_mlps_are_no_layers_and_their_networks_can_be_scored():
    net = timm.create_model("vit_relpos_small_patch16_224", img_size=64, depth=2, embed_dim=32, num_heads=2, rel_pos_type="mlp")
    model = VisionModel(net, "relpos", 64)
    assert [site.path for site in find_sites(model)["mlp"]] == ["blocks.0.mlp.fc2", "blocks.1.mlp.fc2"]
    rendering = vv.Visualizer(model, vv.Recipe(steps=1), images=torch.rand(2, 3, 64, 64), keep=False).render(-1, 0)
    assert len(rendering.scores.percentile) == 1


def test_mlps_that_mix_tokens_and_squeeze_and_excitation_are_no_layers():
    mixer = VisionModel(mlp_mixer.MlpMixer(4, 64, patch_size=8, num_blocks=2, embed_dim=48), "mixer", 64)
    assert [site.path for site in find_sites(mixer)["mlp"]] == [f"blocks.{i}.mlp_channels.fc2" for i in (0, 1)]
    net = VisionModel(timm.create_model("mobilenetv3_small_050"), "mobilenet", 64)
    assert any(".se." in path for path, _ in net.module.named_modules())
    assert not any(".se." in site.path for site in find_sites(net)["channel"])


# Positions


def squares_found(model: VisionModel, kind: str = "mlp") -> list[float]:
    """Share of a network's tokens, by layer, that change most when their own square of the image is replaced."""
    shares = []
    for site in find_sites(model)[kind]:
        x, side = inputs(1, model.image_size), model.image_size // site.grid[0]
        changed = x.repeat(site.grid[0] * site.grid[1], 1, 1, 1)
        for i, image in enumerate(changed):
            row, column = i // site.grid[1] * side, i % site.grid[1] * side
            image[:, row:row + side, column:column + side] = torch.randn(3, side, side)
        with torch.no_grad():
            change = (tokens(model, site, changed) - tokens(model, site, x)).norm(dim=2)
        shares.append((change.argmax(1) == torch.arange(len(changed))).float().mean().item())
    return shares


@pytest.mark.parametrize(("name", "build", "size"), [
    ("hiera", lambda: hiera.Hiera(img_size=(64, 64), embed_dim=16, num_heads=1, stages=(1, 1, 1), q_pool=2, num_classes=4,
                                  mask_unit_size=(4, 4)), 64),
    ("nest", lambda: nest.Nest(img_size=64, patch_size=4, num_levels=2, embed_dims=(16, 32), num_heads=(1, 2), depths=(1, 1),
                               num_classes=4), 64),
])
def test_tokens_in_another_order_are_put_back_into_raster_order(name: str, build: Callable, size: int):
    model = VisionModel(build(), name, size)
    if name == "hiera":
        stem = model.module.patch_embed.proj.weight.data
        stem[:, :, :2], stem[:, :, -1:], stem[:, :, :, :2], stem[:, :, :, -1:] = 0, 0, 0, 0  # so that patches do not overlap
    sites = find_sites(model)["mlp"]
    assert any(site.order is not None for site in sites) and all(site.grid for site in sites)
    assert min(squares_found(model)) > 0.7  # by chance 0.02


def test_patches_within_patches_of_mobilevit_are_put_back_into_raster_order():
    model = VisionModel(timm.create_model("mobilevitv2_050", num_classes=4), "mobilevit", 128)
    side = 16
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    inside, patch = row % 2 * 2 + column % 2, row // 2 * (side // 2) + column // 2  # as it unfolds its maps
    assert torch.equal(find_site(model, 0).order, (inside * (side // 2) ** 2 + patch).flatten())


def test_tokens_last_or_first_are_told_apart_by_the_probe():
    module = torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 2], [4, 4], stochastic_depth_prob=0.0, num_classes=4)
    model = VisionModel(module, "swin of torchvision", 64)
    assert [(site.units, site.grid) for site in find_sites(model)["mlp"]] == [(96, (16, 16))] * 2 + [(192, (8, 8))] * 2
    assert [(site.units, site.grid, site.last) for site in find_sites(model)["residual"]][::2] == [
        (24, (16, 16), True), (48, (8, 8), True)]
    assert min(squares_found(model)[:2]) > 0.9


def test_windows_say_why_they_have_no_grid():
    module = swin_transformer.SwinTransformer(img_size=32, patch_size=4, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4,
                                              num_classes=4)
    site = find_site(VisionModel(module, "swin", 32), 1, "query")
    assert site.grid is None and site.why == "its tokens are in windows"


class PaddedMLP(Functional):
    """An MLP over 4 x 4 patches that are filled up to 6 x 6, as windows are that are larger than the image."""

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x.unflatten(1, (4, 4)), (0, 0, 0, 2, 0, 2)).flatten(1, 2)
        return super().forward(padded).unflatten(1, (6, 6))[:, :4, :4].flatten(1, 2)


class Pyramid(nn.Module):
    """A block over 8 x 8 patches of 64 px, and one over 4 x 4."""

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.stem, self.first, self.second, self.head = nn.Conv2d(3, 8, 8, 8), Block(Functional()), Block(mlp), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(self.stem(images).flatten(2).transpose(1, 2))
        x = F.avg_pool2d(x.transpose(1, 2).unflatten(2, (8, 8)), 2).flatten(2).transpose(1, 2)
        return self.head(self.second(x).mean(1))


@pytest.mark.parametrize(("mlp", "grid"), [(Functional, (4, 4)), (PaddedMLP, None)])
def test_padding_of_windows_is_no_position(mlp: Callable, grid):
    """Of 36 tokens no patch of the image can change 20: they are no grid of 6 x 6."""
    assert [site.grid for site in find_sites(VisionModel(Pyramid(mlp()), "pyramid", 64))["mlp"]] == [(8, 8), grid]


# CNNs


class Heads(nn.Module):
    """Attention of two heads with an activation function on (N, heads, positions, 4), as linear attention has."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        heads = self.act(x.unflatten(1, (2, 4)).flatten(3).transpose(2, 3))
        mixed = heads @ (heads.transpose(2, 3) @ heads) / heads.shape[2]
        return mixed.transpose(2, 3).reshape(x.shape)


def test_a_tensor_of_heads_is_no_map_of_channels():
    module = nn.Sequential(ConvReLU(3, 8), Heads(), ConvReLU(8, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    assert [(site.path, site.units, site.grid) for site in find_sites(VisionModel(module, "attentive", 16))["channel"]] == [
        ("0", 8, (16, 16)), ("2", 6, (16, 16))]


class ConvReLU(nn.Module):
    def __init__(self, i: int, o: int):
        super().__init__()
        self.conv = nn.Conv2d(i, o, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x), inplace=True)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(x.sigmoid())


def test_channels_are_read_after_functions_and_classes_that_no_list_names():
    module = nn.Sequential(ConvReLU(3, 4), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1), Swish(), nn.AdaptiveAvgPool2d(1),
                           nn.Flatten(), nn.Linear(5, 6))
    model, x = VisionModel(module, "small", 16), inputs(2, 16)
    assert [(s.path, s.units, s.grid) for s in find_sites(model)["channel"]] == [("0", 4, (16, 16)), ("3", 5, (8, 8))]
    with torch.no_grad():
        first = module[0].conv(x).relu()
        second = F.silu(module[2](F.max_pool2d(first, 2)))
    for layer, expected in enumerate((first, second)):
        assert torch.allclose(tokens(model, find_site(model, layer), x), expected.flatten(2).transpose(1, 2), atol=1e-6)
        assert torch.equal(tokens(model, find_site(model, 0), x, leak=0.25), tokens(model, find_site(model, 0), x))


def test_a_cnns_own_kind_is_channels_so_the_readmes_lines_work():
    model = vv.load("resnet10t", pretrained=False)
    model = VisionModel(model.module, "small", 64)
    rendering = vv.Visualizer(model, vv.Recipe(steps=1), images=torch.rand(2, 3, 64, 64), keep=False).render(-1, 0)
    assert rendering.kind == "channel" and find_sites(model)["logit"][0].units == 1000


# Logits, and layers by path


def test_a_logit_is_the_models_own_and_has_a_gradient(tiny_vit: VisionModel):
    x = inputs().requires_grad_()
    found = tokens(tiny_vit, find_site(tiny_vit, kind="logit"), x)
    images = x.detach() * 0.5 + 0.5
    assert found.shape == (2, 1, 4) and torch.allclose(found[:, 0], tiny_vit.module(x), atol=1e-6)
    found[0, 0, 2].backward()
    assert x.grad[0].any() and not x.grad[1].any()
    images = images.clamp(0, 1)
    assert torch.allclose(activations(tiny_vit, "logit", images)[0], tiny_vit(images), atol=1e-6)
    assert list(KINDS).index("channel") == 6  # kinds that came later change no older picture


def test_the_logits_of_a_language_supervised_model_are_its_classes():
    model = vv.load("emoji-clip", device="cpu")
    images = torch.rand(2, 3, 64, 64)
    assert find_site(model, kind="logit").units == len(model.class_names)
    assert torch.allclose(activations(model, "logit", images)[0], model(images), atol=1e-4)


def test_features_are_no_logits_and_registers_no_class_token():
    arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    registers = VisionTransformer(32, 8, **arguments, num_classes=0, class_token=False, reg_tokens=4, global_pool="avg")
    found = find_sites(VisionModel(registers, "registers", 32))
    assert found["mlp"][0].prefix == 4 and "logit" not in found and "cls" not in found


def test_layers_have_paths_too(tiny_vit: VisionModel):
    site = find_site(tiny_vit, 1)
    for path in ("blocks.1.mlp.act", "blocks.1.mlp.fc1", "blocks.1.mlp.fc2", "blocks.1.mlp", "blocks.1"):
        assert find_site(tiny_vit, path) == site
    assert find_site(tiny_vit, "blocks.1", "residual") == find_site(tiny_vit, 1, "residual")
    assert find_site(tiny_vit, "blocks.1.attn").kind == "query"
    with pytest.raises(VitvizError, match=r"2 mlp layers in 'blocks' of tiny-vit, 0 to 1"):
        find_site(tiny_vit, "blocks")
    with pytest.raises(VitvizError, match=r"no layer at 'block.1.mlp.fc2'; a layer is a number.*mean blocks\.1\.mlp\.fc2"):
        find_site(tiny_vit, "block.1.mlp.fc2", "mlp")


@pytest.mark.parametrize("size", [16])
def test_coarse_stages_of_one_token_are_layers_of_the_trunk(size: int):
    module = nn.Sequential(*(part for i in range(4) for part in (nn.Conv2d(3 if i == 0 else 4, 4, 3, 2, 1), nn.ReLU())))
    model = VisionModel(nn.Sequential(module, nn.Flatten()), "coarse", size)
    assert [site.grid for site in find_sites(model)["channel"]] == [(8, 8), (4, 4), (2, 2), (1, 1)]


class Shuffled(VisionTransformer):
    """A ViT whose patches are in an order of their own."""

    def _pos_embed(self, x: Tensor) -> Tensor:
        x, order = super()._pos_embed(x), torch.randperm(16, generator=torch.Generator().manual_seed(0))
        return torch.cat([x[:, :1], x[:, 1:][:, order]], 1)


def test_tokens_in_no_order_have_no_map_but_the_class_token_is_left_out_of_the_mean():
    torch.manual_seed(0)
    model = VisionModel(Shuffled(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=3), "shuffled", 32)
    site = find_site(model)
    assert site.prefix == 1 and site.grid is None and "no order" in site.why
    assert tokens(model, site, torch.rand(2, 3, 32, 32)).shape == (2, 16, 96)
