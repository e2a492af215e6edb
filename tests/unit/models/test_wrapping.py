"""Any module through one door: what it says of itself is heeded, what it does not say is asked for, and nothing is guessed."""

from types import SimpleNamespace

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import vitviz_nb as vv
from vitviz_nb.models.sites import find_sites
from vitviz_nb.utils.errors import VitvizError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PLAIN = {"image_size": 8, "mean": (0, 0, 0), "std": (1, 1, 1)}


class Means(nn.Module):
    """Logits: the means of the channels, as any of the outputs that libraries return."""

    def __init__(self, output=lambda means: means):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.output = output

    def forward(self, images: Tensor):
        return self.output(images.mean((2, 3)) * self.scale)


def test_a_timm_module_says_its_own_size_normalization_and_name():
    net = timm.create_model("resnet10t")
    model = vv.wrap(net)
    assert model.mean.flatten().tolist() == pytest.approx(IMAGENET["mean"])
    assert (model.name, model.image_size, model.crop_pct) == ("resnet10t", 176, net.pretrained_cfg["crop_pct"])
    assert model.class_names[0] == "tench" and model.module is net
    assert vv.wrap(timm.create_model("test_vit", img_size=64)).image_size == 64  # and not its configuration's 160
    assert vv.wrap(net, image_size=64, mean=(0, 0, 0), name="mine").image_size == 64
    assert not any(p.requires_grad for p in net.parameters()) and not net.training


def test_a_model_made_without_the_door_is_normalized_as_its_module_says_too():
    says = timm.create_model("test_vit")
    says.pretrained_cfg = says.pretrained_cfg | {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    model = vv.VisionModel(says, "test_vit", 160)
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert model.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    given = vv.VisionModel(says, "test_vit", 160, mean=(0.7,) * 3)
    assert given.mean.flatten().tolist() == pytest.approx([0.7] * 3) and given.std.flatten()[0] == pytest.approx(0.4)


def test_what_a_module_does_not_say_is_asked_for():
    with pytest.raises(VitvizError, match=r"Means does not say its image_size, mean, std: .*mean=\(0\.485, .*image_mean"):
        vv.wrap(Means())
    with pytest.raises(VitvizError, match="does not say its mean, std:"):
        vv.wrap(Means(), image_size=8)
    with pytest.raises(VitvizError, match="not 123"):
        vv.wrap(Means(), 8, mean=(123, 117, 104), std=(58, 57, 57))


@pytest.mark.parametrize("output", [
    lambda means: (means, means + 1), lambda means: SimpleNamespace(logits=means, last_hidden_state=means + 1),
    lambda means: SimpleNamespace(image_embeds=means, last_hidden_state=means + 1),
    lambda means: SimpleNamespace(last_hidden_state=means + 1, pooler_output=means),
    lambda means: SimpleNamespace(last_hidden_state=means, pooler_output=None)])
def test_outputs_of_other_libraries_give_logits_or_features(output):
    images = torch.rand(2, 3, 8, 8)
    assert torch.allclose(vv.wrap(Means(output), **PLAIN)(images), images.mean((2, 3)))


def test_class_names_come_from_hugging_faces_labels_where_there_are_logits_for_them():
    def labeled(labels: list[str]) -> nn.Module:
        module = Means()
        module.config = SimpleNamespace(id2label=dict(enumerate(labels)), image_size=8)
        return module

    given = {"mean": PLAIN["mean"], "std": PLAIN["std"]}
    assert vv.wrap(labeled(["ant", "bee", "cat"]), **given).class_names == ["ant", "bee", "cat"]
    assert vv.wrap(labeled(["ant", "bee"]), **given).class_names is None  # of a head that was cut off
    assert vv.wrap(labeled(["LABEL_0", "LABEL_1", "LABEL_2"]), **given).class_names is None
    assert vv.wrap(labeled(["ant", "bee", "cat"]), **given, class_names=["x", "y", "z"]).class_names == ["x", "y", "z"]
    with pytest.raises(VitvizError, match="2 class names, but 3 logits"):
        vv.wrap(labeled(["ant", "bee", "cat"]), **given, class_names=["x", "y"])


class Compiled(nn.Module):
    """As torch.compile returns it, without the eight seconds that its import takes."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self._orig_mod = module

    def __len__(self) -> int:
        raise TypeError("a network has no length")


def test_a_compiled_or_parallel_module_is_taken_as_what_is_inside():
    net = timm.create_model("test_vit")
    assert vv.wrap(Compiled(net)).module is net
    assert vv.wrap(nn.DataParallel(Compiled(net))).module is net


def in_part(change) -> nn.Module:
    net = timm.create_model("test_vit")
    change(net)
    return net


class Quantized(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)


Adapter = type("Linear", (nn.Linear,), {"__module__": "peft.tuners.lora.layer"})
REFUSED = {
    "half": (lambda: timm.create_model("test_vit").half(), r"weights are float16, .*wrap module\.float\(\)"),
    "bfloat16": (lambda: in_part(lambda net: net.blocks[1].bfloat16()), r"weights are bfloat16, .*wrap module\.float\(\)"),
    "quantized": (lambda: Quantized(), "weights are quantized, which leaves no gradient"),
    "LoRA": (lambda: in_part(lambda net: setattr(net, "head", Adapter(64, 4))), r"wrap what module\.merge_and_unload\(\)"),
    "compiled in part": (lambda: in_part(lambda net: setattr(net, "head", Compiled(net.head))), "compiled in part"),
    "meta": (lambda: timm.create_model("test_vit").to("meta"), "weights are not there yet"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "weights are not there yet.*show a lazy module an image"),
    "gray": (lambda: timm.create_model("test_vit", in_chans=1), r"^test_vit takes images of 1 channel.*wrap nn\.Sequential"),
    "four channels": (lambda: timm.create_model("resnet10t", in_chans=4), r"images of 4 channel.*the kit's are RGB"),
    "wide": (lambda: timm.create_model("test_vit", img_size=(64, 128)), "takes images of 64 x 128 px; the kit shows square ones"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_reason_and_the_way_out(what: str):
    make, says = REFUSED[what]
    with pytest.raises(VitvizError, match=says) as caught:
        vv.wrap(make(), **({"image_size": 8} | IMAGENET if what == "quantized" else {}))
    assert "\n" not in str(caught.value)


def test_a_gray_network_is_shown_behind_a_layer_that_makes_gray():
    class Gray(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(1, keepdim=True)

    model = vv.wrap(nn.Sequential(Gray(), timm.create_model("test_vit", in_chans=1, num_classes=3)), 160, (0.5,) * 3, (0.5,) * 3)
    assert model(torch.rand(1, 3, 160, 160)).shape == (1, 3)


def test_a_size_that_patches_do_not_fill_is_refused_with_sizes_that_they_do():
    with pytest.raises(VitvizError, match="patches of 16 px, which do not fill 100 px; give an image_size such as 96 or 112"):
        vv.wrap(timm.create_model("test_vit", dynamic_img_size=True), image_size=100)
    fixed = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    with pytest.raises(VitvizError, match=r"cannot be run on inputs of shape \(1, 3, 64, 64\)"):
        vv.wrap(fixed, 64, **IMAGENET)


def test_a_whole_language_and_image_model_names_its_image_tower():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = Means()

        def forward(self, text: Tensor):
            raise AttributeError("'NoneType' object has no attribute 'shape'")

    with pytest.raises(VitvizError, match=r"Wrap its image tower alone: vv\.wrap\(module\.visual"):
        vv.wrap(Both(), **PLAIN)


@pytest.mark.parametrize("door", ["load", "explore", "Visualizer"])
def test_doors_for_models_name_the_one_for_modules_and_print_no_network(door: str):
    with pytest.raises(VitvizError, match=r"vv\.wrap\(module\)") as caught:
        getattr(vv, door)(timm.create_model("test_vit"))
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_gradient_checkpointing_is_off_in_the_kits_passes_and_on_afterwards(name: str):
    images, recipe = torch.rand(4, 3, 160, 160), vv.Recipe(steps=2, copies=1)
    torch.manual_seed(1)
    net = timm.create_model(name)
    model = vv.wrap(net)
    plain = vv.Visualizer(model, recipe, images, keep=False).render(-1, 0)
    state = model.state()
    net.set_grad_checkpointing(True)
    assert model.state() == state
    assert torch.equal(vv.Visualizer(model, recipe, images, keep=False).render(-1, 0).pictures, plain.pictures)
    switched = [part for part in net.modules() if hasattr(part, "grad_checkpointing")]
    assert switched and all(part.grad_checkpointing for part in switched)


def test_double_precision_gives_the_same_picture_to_rounding():
    images, recipe = torch.rand(4, 3, 160, 160), vv.Recipe(steps=2, copies=1)
    torch.manual_seed(1)
    net = timm.create_model("test_vit")
    single = vv.Visualizer(vv.wrap(net), recipe, images, keep=False).render(-1, 0)
    double = vv.Visualizer(vv.wrap(net.double()), recipe, images, keep=False).render(-1, 0)
    assert torch.allclose(single.pictures, double.pictures.float(), atol=1e-3)


def test_a_network_without_a_gradient_is_refused_when_wrapped_too():
    net = timm.create_model("test_vit")
    net.forward = torch.no_grad()(net.forward)
    with pytest.raises(VitvizError, match="gradient"):
        vv.Visualizer(vv.wrap(net), vv.Recipe(steps=2, copies=1), torch.rand(4, 3, 160, 160), keep=False).render(-1, 0)


def test_the_state_follows_a_configuration_that_passes_may_read():
    module = Means()
    module.config = SimpleNamespace(to_dict=lambda: {"scale": module.config.scale}, scale=1.0)
    model = vv.wrap(module, **PLAIN)
    before = model.structure
    module.config.scale = 2.0
    assert model.structure != before


def test_the_size_is_part_of_what_a_model_is():
    net = timm.create_model("resnet10t")
    small, large = vv.wrap(net, image_size=64), vv.wrap(net, image_size=96)
    assert small.state() != large.state() and small.weights_hash == large.weights_hash
    assert find_sites(small)["channel"][-1].grid != find_sites(large)["channel"][-1].grid
