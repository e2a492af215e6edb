"""Sites: what is read is what the network computes, in every family; and nothing of the reading stays behind."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import GlobalResponseNormMlp, Mlp
from timm.models import coat, convit, convnext, deit, pit, resnet, swin_transformer, twins, vision_transformer
from torch import Tensor, nn

from vitviz_nb.models.reading import activations, each_layer, tokens
from vitviz_nb.models.sites import check_neurons, find_site, find_sites
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError


@dataclass(frozen=True)
class Family:
    """A small model, and what its MLP layers are: (units, prefix tokens, side of the grid) of each in forward order."""

    build: Callable[[], nn.Module]
    mlp: list[tuple[int, int, int]]
    size: int = 32


_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
_PIT = {"img_size": 32, "patch_size": 8, "stride": 4, "base_dims": (8, 8, 8), "depth": (1, 2, 1), "heads": (2, 4, 4),
        "num_classes": 5}
_TWINS = {"img_size": 32, "patch_size": 4, "embed_dims": (16, 16, 32, 32), "num_heads": (2, 2, 2, 2), "num_classes": 5}
_NEXT = {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 32), "num_classes": 5}
FAMILIES = {
    "vit": Family(lambda: vision_transformer.VisionTransformer(**_VIT), [(128, 1, 4)] * 2),
    "vit, pooled": Family(lambda: vision_transformer.VisionTransformer(**_VIT, class_token=False, global_pool="avg"),
                          [(128, 0, 4)] * 2),
    "vit, registers": Family(lambda: vision_transformer.VisionTransformer(**_VIT, reg_tokens=4), [(128, 5, 4)] * 2),
    "clip": Family(lambda: timm.create_model("vit_base_patch32_clip_quickgelu_224", **_VIT), [(128, 1, 4)] * 2),
    "deit, distilled": Family(lambda: deit.VisionTransformerDistilled(**_VIT), [(128, 2, 4)] * 2),
    "coat": Family(lambda: coat.CoaT(img_size=64, patch_size=4, embed_dims=(32, 32, 32, 32), serial_depths=(1, 1, 1, 1),
                                     parallel_depth=2, num_classes=5),
                   [(128, 1, 16), (128, 1, 8), (128, 1, 4), (128, 1, 2), *[(128, 1, 8), (128, 1, 4), (128, 1, 2)] * 2], 64),
    "convit": Family(lambda: convit.ConVit(img_size=32, patch_size=8, embed_dim=8, num_heads=4, depth=3, local_up_to_layer=2,
                                           num_classes=5), [(128, 0, 4), (128, 0, 4), (128, 1, 4)]),
    "pit": Family(lambda: pit.PoolingVisionTransformer(**_PIT), [(64, 1, 7), (128, 1, 4), (128, 1, 4), (128, 1, 2)]),
    "pit, distilled": Family(lambda: pit.PoolingVisionTransformer(**_PIT, distilled=True),
                             [(64, 2, 7), (128, 2, 4), (128, 2, 4), (128, 2, 2)]),
    "swin": Family(lambda: swin_transformer.SwinTransformer(img_size=32, patch_size=4, embed_dim=16, depths=(2, 2),
                                                            num_heads=(2, 4), window_size=4, num_classes=5),
                   [(64, 0, 8), (64, 0, 8), (128, 0, 4), (128, 0, 4)]),
    "twins svt": Family(lambda: twins.Twins(**_TWINS, depths=(2, 2, 2, 2), wss=(4, 2, 2, 2)),
                        [(64, 0, 8)] * 2 + [(64, 0, 4)] * 2 + [(128, 0, 2)] * 2 + [(128, 0, 1)] * 2),
    "twins pcpvt": Family(lambda: twins.Twins(**_TWINS, depths=(1, 1, 1, 1)),
                          [(64, 0, 8), (64, 0, 4), (128, 0, 2), (128, 0, 1)]),
    "convnext": Family(lambda: convnext.ConvNeXt(**_NEXT), [(32, 0, 16), (64, 0, 8), (64, 0, 4), (128, 0, 2)], 64),
    "convnext, convolutions": Family(lambda: convnext.ConvNeXt(**_NEXT, conv_mlp=True),
                                     [(32, 0, 16), (64, 0, 8), (64, 0, 4), (128, 0, 2)], 64),
    "convnext v2": Family(lambda: convnext.ConvNeXt(**_NEXT, use_grn=True, ls_init_value=None),
                          [(32, 0, 16), (64, 0, 8), (64, 0, 4), (128, 0, 2)], 64),
}
# A projection's rows by timm's names: which of how many shares are queries, keys and values.
_ROWS = {
    "query": {"qkv": (0, 3), "qk": (0, 2), "q": (0, 1)},
    "key": {"qkv": (1, 3), "qk": (1, 2), "kv": (0, 2)},
    "value": {"qkv": (2, 3), "kv": (1, 2), "v": (0, 1)},
}
_ATTENTIVE = [name for name in FAMILIES if not name.startswith("convnext")]


@pytest.fixture(scope="module")
def family_models() -> dict[str, VisionModel]:
    torch.manual_seed(3)
    made = {name: VisionModel(family.build(), name, family.size) for name, family in FAMILIES.items()}
    for model in made.values():
        for parameter in model.module.parameters():  # timm begins some at 0 or 1, where mistakes would not show
            parameter.data += 0.05 * torch.randn_like(parameter)
    return made


@pytest.fixture
def resnet_model() -> VisionModel:
    return VisionModel(resnet.ResNet(resnet.Bottleneck, (1, 1, 1, 1), channels=(8, 8, 16, 16), num_classes=5), "resnet", 32)


def inputs(model: VisionModel, n: int = 2) -> Tensor:
    return torch.rand(n, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(1))


@contextmanager
def spied(modules: list[nn.Module]) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """(module, its first argument) of every call, in order, by hooks of the test's own."""
    calls: list[tuple[nn.Module, Tensor]] = []
    handles = [m.register_forward_pre_hook(lambda module, arguments: calls.append((module, arguments[0]))) for m in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in module.modules())


def mlps(model: VisionModel) -> list[nn.Module]:
    """What closes each MLP: it is given the hidden units, so they are read in another way than by the kit."""
    return [m.fc2 for m in model.module.modules() if isinstance(m, (Mlp, GlobalResponseNormMlp))]


# Where the sites are


@pytest.mark.parametrize("name", FAMILIES)
def test_mlp_layers_have_their_number_units_prefix_and_grid(name: str, family_models):
    found = find_sites(family_models[name])["mlp"]
    assert [(s.units, s.prefix, s.grid) for s in found] == [(u, p, (g, g)) for u, p, g in FAMILIES[name].mlp]
    assert [s.layer for s in found] == list(range(len(found)))


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_sites_exist_where_the_family_has_attention(name: str, family_models):
    found, layers = find_sites(family_models[name]), len(FAMILIES[name].mlp)
    attention = {"query", "key", "value", "attention"}
    others = {"mlp", "residual", "logit"} | ({"cls"} if any(prefix for _, prefix, _ in FAMILIES[name].mlp) else set())
    if name not in _ATTENTIVE:
        assert found.keys() == others
        return
    assert found.keys() == others | attention
    for kind in attention:
        assert len(found[kind]) == layers
    # CoaT's parallel blocks hand on three scales at once, so only its four serial blocks have one residual stream.
    assert len(found["residual"]) == (4 if name == "coat" else layers)


def test_coats_shared_mlp_is_a_layer_for_each_of_its_calls(family_models):
    found = find_sites(family_models["coat"])["mlp"][4:]
    assert [(s.path, s.call) for s in found] == [(f"parallel_blocks.{i}.mlp2.fc2", call) for i in (0, 1) for call in (0, 1, 2)]


def test_windows_have_no_grid_because_their_tokens_are_in_another_order(family_models):
    swin, svt = find_sites(family_models["swin"]), find_sites(family_models["twins svt"])
    assert [s.grid for s in swin["query"]] == [None, None, (4, 4), (4, 4)]  # the last stage is one window
    assert [s.grid for s in svt["query"]][:4] == [None, (8, 8), None, (4, 4)]


def test_a_cnn_has_a_channel_site_for_each_activation(resnet_model: VisionModel):
    found = find_sites(resnet_model)
    assert found.keys() == {"channel", "logit"}
    assert [s.path for s in found["channel"]][:5] == ["act1", "layer1.0.act1", "layer1.0.act2", "layer1.0.act3", "layer2.0.act1"]
    assert [(s.units, s.prefix, s.grid) for s in found["channel"]][:4] == [
        (64, 0, (16, 16)), (8, 0, (8, 8)), (8, 0, (8, 8)), (32, 0, (8, 8))]


def test_sites_are_found_once_and_leave_the_model_as_it_was(tiny_vit: VisionModel):
    with spied([tiny_vit.module]) as calls:
        assert find_sites(tiny_vit) is find_sites(tiny_vit)
    assert len(calls) == 1 and hooks(tiny_vit.module) == 0


# What is read there


@pytest.mark.parametrize("name", FAMILIES)
def test_mlp_units_are_what_the_second_layer_is_given(name: str, family_models):
    model = family_models[name]
    x = inputs(model)
    with spied(mlps(model)) as calls, torch.no_grad():
        model.module(x)
    assert len(calls) == len(FAMILIES[name].mlp)
    for site, (_, expected) in zip(find_sites(model)["mlp"], calls, strict=True):
        units, prefix, side = FAMILIES[name].mlp[site.layer]
        if name == "convnext, convolutions":
            expected = expected.permute(0, 2, 3, 1)
        found = tokens(model, site, x)
        assert found.shape == (2, side * side, units)
        assert torch.allclose(found, expected.reshape(2, -1, units)[:, prefix:], atol=1e-5)


@pytest.mark.parametrize("name", _ATTENTIVE)
@pytest.mark.parametrize("kind", _ROWS)
def test_queries_keys_and_values_are_their_rows_of_the_projection(name: str, kind: str, family_models):
    model = family_models[name]
    x = inputs(model)
    names = {m: path.rpartition(".")[2] for path, m in model.module.named_modules() if isinstance(m, nn.Linear)}
    with spied([m for m, last in names.items() if last in _ROWS[kind]]) as calls, torch.no_grad():
        model.module(x)
    for site, (module, given) in zip(find_sites(model)[kind], calls, strict=True):
        share, of = _ROWS[kind][names[module]]
        rows = slice(share * len(module.weight) // of, (share + 1) * len(module.weight) // of)
        expected = F.linear(given, module.weight[rows], None if module.bias is None else module.bias[rows])
        expected = expected.reshape(2, -1, site.units)[:, FAMILIES[name].mlp[site.layer][1]:]
        assert torch.allclose(tokens(model, site, x), expected, atol=1e-5), site


@pytest.mark.parametrize("name", ["vit, pooled", "twins pcpvt"])
def test_queries_keys_and_values_put_together_give_the_attention(name: str, family_models):
    """Says that each is what it is called, which the rows alone do not."""
    model = family_models[name]
    x = inputs(model)
    for layer in range(2):
        q, k, v = (tokens(model, find_site(model, layer, kind), x).unflatten(2, (2, -1)).transpose(1, 2)
                   for kind in ("query", "key", "value"))
        site = find_site(model, layer, "attention")
        mixed = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1) @ v
        expected = model.module.get_submodule(site.path).proj(mixed.transpose(1, 2).flatten(2))
        assert torch.allclose(tokens(model, site, x), expected, atol=1e-5)


def test_the_residual_stream_is_timms_own(family_models):
    for name, prefix in (("vit", 1), ("deit, distilled", 2)):
        model = family_models[name]
        x = inputs(model)
        with torch.no_grad():
            expected = model.module.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
        for layer in range(2):
            found = tokens(model, find_site(model, layer, "residual"), x)
            assert found.shape[1] == 16 and find_site(model, layer, "residual").prefix == prefix
            assert torch.allclose(found, expected[layer], atol=1e-5)


def test_tokens_lie_on_the_image_in_raster_order(family_models):
    """A change in the image's lower left corner is felt most by a token near it."""
    for name in ("vit", "deit, distilled", "coat", "convit", "convnext", "convnext, convolutions", "resnet"):
        model = family_models[name] if name in family_models else VisionModel(
            resnet.ResNet(resnet.Bottleneck, (1, 1, 1, 1), channels=(8, 8, 16, 16), num_classes=5), name, 32)
        site = next(iter(find_sites(model).values()))[0]
        x = inputs(model, 1)
        changed = x.clone()
        changed[..., -4:, :4] += 3
        difference = (tokens(model, site, x) - tokens(model, site, changed)).abs().mean(2).view(site.grid)
        row, column = divmod(difference.argmax().item(), site.grid[1])
        assert row >= 0.7 * site.grid[0] and column < 0.3 * site.grid[1], name


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_an_image_is_read_the_same_alone_and_among_others_by_either_way(name: str, family_models):
    model = family_models[name]
    x = inputs(model, 3)
    images = x * model.std + model.mean
    for kind, sites in find_sites(model).items():
        means = activations(model, kind, images)
        assert len(means) == len(sites)
        for site, mean in zip(sites, means, strict=True):
            with torch.no_grad():
                together, alone = tokens(model, site, x), tokens(model, site, x[1:2])
            assert torch.allclose(together[1:2], alone, atol=1e-5), site
            assert mean.shape == (3, site.units) and torch.allclose(mean, together.mean(1), atol=1e-5), site
    assert hooks(model.module) == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_each_layer_gives_every_sites_tokens_in_order_with_class_tokens_in_front_if_wanted(name: str, family_models):
    model = family_models[name]
    x = inputs(model)
    images = x * model.std + model.mean
    for kind, sites in find_sites(model).items():
        seen = []
        plain = each_layer(model, kind, images, lambda site, found: seen.append(site) or found.clone())  # noqa: B023
        whole = each_layer(model, kind, images, lambda site, found: found.clone(), prefix=True)
        assert sorted(seen, key=lambda site: site.layer) == sites  # as they are listed, with their prefix
        for site, own, more in zip(sites, plain, whole, strict=True):
            assert own.dtype == torch.float32 and torch.allclose(own, tokens(model, site, x), atol=1e-5), site
            assert more.shape[1] == site.prefix + own.shape[1] and torch.equal(more[:, site.prefix:], own), site


def test_class_tokens_in_front_are_those_of_the_network(family_models):
    model = family_models["vit, registers"]
    x = inputs(model)
    with spied([model.module.blocks[1], model.module.norm]) as calls, torch.no_grad():
        model.module(x)
    found = each_layer(model, "residual", x * model.std + model.mean, lambda site, found: found[:, :site.prefix], prefix=True)
    for own, (_, stream) in zip(found, calls, strict=True):
        assert own.shape == (2, 5, 32) and torch.allclose(own, stream[:, :5], atol=1e-5)


def test_what_is_kept_of_a_layer_is_its_own_though_the_next_works_in_place():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(), nn.ReLU(inplace=True))
    model, images = VisionModel(module, "small", 8), torch.rand(2, 3, 8, 8)
    first, second = each_layer(model, "channel", images, lambda site, found: found.amin(1))
    with torch.no_grad():
        expected = F.leaky_relu(module[0](model.normalize(images))).amin((2, 3))
    assert torch.allclose(first, expected, atol=1e-6) and torch.allclose(second, expected.relu(), atol=1e-6)
    assert (expected < 0).any() and hooks(module) == 0


def test_channels_are_what_the_next_layer_is_given(resnet_model: VisionModel):
    x = inputs(resnet_model)
    block = resnet_model.module.layer1[0]
    with spied([block.conv2, block.conv3, resnet_model.module.layer2]) as calls, torch.no_grad():
        resnet_model.module(x)
    for layer, (_, expected) in zip((1, 2, 3), calls, strict=True):
        found = tokens(resnet_model, find_site(resnet_model, layer, "channel"), x)
        assert torch.allclose(found, expected.flatten(2).transpose(1, 2), atol=1e-5)
    means = activations(resnet_model, "channel", x * resnet_model.std + resnet_model.mean)
    assert torch.allclose(means[1], calls[0][1].mean((2, 3)), atol=1e-5)


def test_the_gradient_reaches_the_image_and_no_weight(tiny_vit: VisionModel):
    x = inputs(tiny_vit).requires_grad_()
    tokens(tiny_vit, find_site(tiny_vit, 0), x)[0, :, 5].mean().backward()
    assert x.grad[0].abs().sum() > 0 == x.grad[1].abs().sum()
    assert all(parameter.grad is None for parameter in tiny_vit.module.parameters())


# The forward pass ends there


@pytest.mark.parametrize("name", FAMILIES)
def test_the_forward_pass_ends_at_the_site(name: str, family_models):
    model = family_models[name]
    for site in find_sites(model)["mlp"]:
        with spied([*mlps(model), model.module.head]) as calls:
            tokens(model, site, inputs(model, 1))
        assert len(calls) == site.layer + 1  # the MLPs before it are finished; its own last layer is begun; the head is not


def test_a_cnns_forward_pass_ends_at_the_site(resnet_model: VisionModel):
    site = find_site(resnet_model, 2, "channel")
    with spied([resnet_model.module.layer1, resnet_model.module.layer2, resnet_model.module.fc]) as calls:
        tokens(resnet_model, site, inputs(resnet_model))
    assert [module for module, _ in calls] == [resnet_model.module.layer1]


# Nothing stays behind


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_hooks_and_lock_are_gone_after_an_error_or_an_interrupt_in_the_network(error: type, tiny_vit: VisionModel):
    site, x = find_site(tiny_vit, 1), inputs(tiny_vit)
    expected = tokens(tiny_vit, site, x)
    fresh = VisionModel(tiny_vit.module, "fresh", 32)  # whose sites are not known yet
    block = tiny_vit.module.blocks[1]

    def fail(*_, **__):
        raise error

    block.attn.forward = fail
    for read in (lambda: tokens(tiny_vit, site, x), lambda: activations(tiny_vit, "mlp", x), lambda: find_sites(fresh)):
        with pytest.raises(error):
            read()
        assert hooks(tiny_vit.module) == 0
    free = []

    def try_lock() -> None:
        for model in (tiny_vit, fresh):
            free.append(model.lock.acquire(timeout=5))
            model.lock.release()

    thread = threading.Thread(target=try_lock)  # of this thread the lock would let itself be taken again
    thread.start()
    thread.join()
    assert free == [True, True]
    del block.attn.forward
    assert torch.equal(tokens(tiny_vit, site, x), expected)


def test_a_site_that_is_no_longer_called_is_an_error_not_a_wrong_picture(tiny_vit: VisionModel):
    site = find_site(tiny_vit, 1)
    tiny_vit.module.blocks[1].forward = lambda x, *_, **__: x
    with pytest.raises(VitvizError, match=r"blocks\.1\.mlp\.fc2 of tiny-vit was called 0 times, not 1 .*load it again"):
        tokens(tiny_vit, site, inputs(tiny_vit))
    assert hooks(tiny_vit.module) == 0


# Bad addresses


def test_negative_layers_count_from_the_end(tiny_vit: VisionModel):
    assert find_site(tiny_vit, -1) == find_site(tiny_vit, 1) and find_site(tiny_vit, -2).layer == 0
    assert str(find_site(tiny_vit, -1, "key")) == "key layer 1"


@pytest.mark.parametrize("layer", [2, 99, -3, -99])
def test_a_layer_out_of_range_is_told_the_range(layer: int, tiny_vit: VisionModel):
    with pytest.raises(VitvizError, match=rf"tiny-vit has no mlp layer {layer}; its layers are 0 to 1 \(or -1"):
        find_site(tiny_vit, layer)


def test_a_kind_the_model_lacks_is_told_which_it_has(tiny_vit: VisionModel, resnet_model: VisionModel):
    with pytest.raises(VitvizError, match=r"'channel'; it has mlp, query, key, value, attention, residual, logit, cls\.$"):
        find_site(tiny_vit, 0, "channel")
    with pytest.raises(VitvizError, match=r"resnet has no sites of kind 'mlp'; it has channel, logit\.$"):
        find_site(resnet_model, 0, "mlp")
    with pytest.raises(VitvizError, match=r"'querry'.*Did you mean query"):
        find_site(tiny_vit, 0, "querry")


@pytest.mark.parametrize(("neurons", "says"), [
    (128, "neurons 0 to 127; neuron 128 is out of range"), ([0, -1], "neuron -1 is out of range"),
    ([3, 4, 3], "the same neuron twice"), ([], "none was named"), (range(120, 130), "neuron 128 is out of range"),
])
def test_wrong_neurons_are_told_the_range(neurons, says: str, tiny_vit: VisionModel):
    with pytest.raises(VitvizError, match=rf"The mlp layer 0 has neurons 0 to 127; .*{says.rpartition('; ')[2]}"):
        check_neurons(find_site(tiny_vit, 0), neurons)


def test_neurons_may_be_a_number_or_any_list_of_numbers(tiny_vit: VisionModel):
    site = find_site(tiny_vit, 0)
    assert check_neurons(site, 127) == [127]
    assert check_neurons(site, np.array([5, 3])) == check_neurons(site, (5, 3)) == [5, 3]
    assert check_neurons(site, np.int64(7)) == [7]


def test_a_model_without_readable_units_says_so():
    model = VisionModel(nn.Sequential(nn.Conv2d(3, 4, 3)), "plain", 8)
    with pytest.raises(VitvizError, match=r"plain has no neurons this kit can read: .*no logits, but a Tensor of shape"):
        find_sites(model)
    assert hooks(model.module) == 0


@pytest.mark.parametrize("inplace", [False, True])
def test_a_leak_adds_its_share_of_what_goes_into_the_activation_function(inplace: bool):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=inplace))
    model = VisionModel(module, "small", 8)
    images = torch.randn(2, 3, 8, 8)
    before = module[0](images).flatten(2).transpose(1, 2)
    found = tokens(model, find_site(model, 0, "channel"), images, leak=0.25)
    assert torch.allclose(found, before.relu() + 0.25 * before, atol=1e-6)
    assert torch.equal(tokens(model, find_site(model, 0, "channel"), images), before.relu())
    assert not module[1]._forward_hooks and not module[1]._forward_pre_hooks


@pytest.mark.parametrize("name", FAMILIES)
def test_the_one_unit_wanted_of_each_input_is_its_column_of_all_and_has_its_gradient(name: str, family_models):
    model = family_models[name]
    for kind, sites in find_sites(model).items():
        site, leak = sites[-1], 0.25 if kind == "mlp" else 0.0
        own, x = torch.tensor([site.units - 1, 2]), inputs(model).requires_grad_()
        every = tokens(model, site, x, leak)
        expected = torch.stack([every[0, :, site.units - 1 :], every[1, :, 2:3]])
        found = tokens(model, replace(site, own=own), x, leak)
        assert found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5), site
        gradients = [torch.autograd.grad(answer.mean(1).sum(), x)[0] for answer in (found, expected)]
        assert torch.allclose(*gradients, rtol=1e-3, atol=1e-5 * gradients[1].abs().max().item()), site
    assert hooks(model.module) == 0


def test_the_one_unit_wanted_is_made_without_the_others(tiny_vit: VisionModel):
    site, x = replace(find_site(tiny_vit, 1), own=torch.tensor([0, 5])), inputs(tiny_vit)
    expected = tokens(tiny_vit, site, x)
    weight = tiny_vit.module.blocks[1].mlp.fc1.weight
    weight.data[1:5], weight.data[6:] = torch.nan, torch.nan
    assert torch.equal(tokens(tiny_vit, site, x), expected)


class Turned(nn.Module):
    """An activation function that is applied to mixtures of units."""

    def __init__(self):
        super().__init__()
        self.register_buffer("turn", torch.linalg.qr(torch.randn(128, 128))[0])

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x @ self.turn)


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), Turned(), None], ids=["in place", "of all units", "a hook before it"])
def test_the_one_unit_wanted_is_right_whatever_the_activation_function(act: nn.Module | None, tiny_vit: VisionModel):
    mlp = tiny_vit.module.blocks[1].mlp
    mlp.act = act or mlp.act
    if act is None:
        mlp.fc1.register_forward_hook(lambda module, given, made: made.flip(2))
    site, x, own = find_site(tiny_vit, 1), inputs(tiny_vit), torch.tensor([0, 100])
    for leak in (0.0, 0.25):
        every = tokens(tiny_vit, site, x, leak)
        found = tokens(tiny_vit, replace(site, own=own), x, leak)
        assert torch.allclose(found, torch.stack([every[0, :, :1], every[1, :, 100:101]]), atol=1e-5)
