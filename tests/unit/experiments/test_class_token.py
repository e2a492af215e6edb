"""CLS isolated and CLS-only: models planted so that every accuracy can be worked out by hand; all else must stay as it was."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from pydoc import locate

import pytest
import torch
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from vitviz_nb.datasets.emoji_world import EmojiWorld
from vitviz_nb.datasets.image_folder import ImageFolder
from vitviz_nb.datasets.image_set import ImageSet
from vitviz_nb.experiments.class_token import cls_isolation, cls_only, cls_only_from, head_on_tokens, isolate_cls, patch_logits
from vitviz_nb.experiments.classification import correct_predictions
from vitviz_nb.experiments.result import Result
from vitviz_nb.models import vision_model
from vitviz_nb.models.text_tower import TextTower
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import NotApplicable, VitvizError

ALL = [cls_isolation, cls_only_from, head_on_tokens]
VIT, DEIT = "vision_transformer.VisionTransformer", "deit.VisionTransformerDistilled"
NAMES = ["red", "green", "blue", "d", "e", "f", "g", "h"]
# What the planted model answers if it has read nothing: green, then blue, d, e, f; red is not among the first five.
BLIND = torch.tensor([-0.02, 0.02, 0.01, 0.005, 0.004, 0.003, -0.03, -0.03])
WORLD = EmojiWorld(concepts=["ant", "cat", "dog", "owl", "pig", "eye"], size=32)
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
STAGES = {"img_size": 32, "patch_size": 4}


def timm(path: str, **arguments) -> nn.Module:
    return locate(f"timm.models.{path}")(**{"num_classes": 6} | arguments)


def planted(family: str, reading: int | None) -> VisionModel:
    """Three blocks of which only ``reading`` does anything: it adds to every token the mean of all.

    A patch token begins as the patch's mean color (three of eight units), the class tokens as zero; the head names the color.
    """
    module = timm(family, **SMALL | {"embed_dim": 8, "num_heads": 1, "mlp_ratio": 1, "num_classes": 8})
    for name, weight in module.named_parameters():
        weight.data.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    for color in range(3):
        module.patch_embed.proj.weight.data[color, color] = 1 / 64
    if reading is not None:
        module.blocks[reading].attn.qkv.weight.data[16:] = torch.eye(8)  # values; equal keys: attention to all tokens alike
        module.blocks[reading].attn.proj.weight.data = torch.eye(8)
    for head in [module.head, *([module.head_dist] if family == DEIT else [])]:
        head.weight.data, head.bias.data = torch.eye(8), BLIND.clone()
    return VisionModel(module, "planted", 32, class_names=NAMES)


def labeled(images: Tensor, labels: list[str]) -> ImageFolder:
    return ImageFolder(images, [Path(f"{i}.png") for i in range(len(labels))], labels, [])


def flat(*colors: tuple[float, float, float]) -> Tensor:
    return torch.tensor(colors).view(-1, 3, 1, 1).expand(-1, 3, 32, 32).contiguous()


RED, GREEN, BLUE = (1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)
# Right if they are seen: all. Right if nothing is read: two of six, and with the first five, three of six.
SIX = labeled(flat(RED, GREEN, RED, BLUE, GREEN, RED), ["red", "green", "red", "blue", "green", "red"])
SEEN, UNREAD = (100, 100), (33.33, 50)
CORNER = flat((1, 0.95, 0))  # nearly yellow, and to the model red; the lower right quarter blue
CORNER[:, :, 16:, 16:] = torch.tensor(BLUE).view(3, 1, 1)


def named(model: VisionModel, image: Tensor) -> list[list[int]]:
    """The class that the head sees at each patch."""
    return patch_logits(model, image).argmax(-1)[0].view(4, 4).tolist()


def both(result: Result) -> list[tuple[float, float]]:
    """(top-1, top-5) of each row of the figure, in percent."""
    first, five = (result.where(measure=of).table["value"].round(2) for of in ("top-1", "top-5"))
    return list(zip(first, five, strict=True))


def small(family: str, **arguments) -> VisionModel:
    """Random weights so large that the answer depends on the image, and on whether the class token sees the patches."""
    module = timm(family, **arguments)
    for weight in module.parameters():
        weight.data *= 8 if weight.dim() > 1 else 1
    return VisionModel(module, "small", 32, class_names=WORLD.concepts, trained=False)


# Isolation


@pytest.mark.slow
@pytest.mark.parametrize("family", [VIT, DEIT])
@pytest.mark.parametrize("reading", [0, 1, 2])
def test_only_the_block_that_reads_the_patches_matters(family, reading):
    model = planted(family, reading)
    assert both(cls_isolation(model, SIX)) == [SEEN if k <= reading else UNREAD for k in range(4)]
    assert both(cls_only_from(model, SIX)) == [SEEN if k > reading else UNREAD for k in range(4)]
    blind = planted(family, None)  # what has read nothing has nothing to lose
    assert both(cls_isolation(blind, SIX)) == both(cls_only_from(blind, SIX)) == [UNREAD] * 4


def test_patches_still_read_each_other_when_cls_is_isolated_and_stay_as_they_are_when_only_cls_is_run():
    model = planted(VIT, 0)
    model.module.blocks[0].attn.proj.weight.data *= 10  # the mean over the patches, red, drowns what each of them shows
    with isolate_cls(model, 3):
        assert named(model, CORNER) == [[0] * 4] * 4
    with cls_only(model, 0):
        assert named(model, CORNER) == [[0] * 4, [0] * 4, [0, 0, 2, 2], [0, 0, 2, 2]]


@pytest.mark.parametrize("run", [isolate_cls, cls_only])
@pytest.mark.parametrize("k", [-1, 4, 1.5, "all", None, True])
def test_a_number_of_blocks_that_there_is_not_is_refused(run, k):
    with pytest.raises(VitvizError, match="number of .*block.* is a whole number from 0 to 3"), run(planted(VIT, 0), k):
        pass


@pytest.mark.parametrize("model", ["emoji-vit", nn.Identity(), None])
def test_what_is_no_model_is_refused(model):
    for experiment in (*ALL, lambda model: isolate_cls(model, 1), lambda model: cls_only(model, 1)):
        with pytest.raises(VitvizError, match="vv.load"):
            experiment(model)


def accuracy(model: VisionModel) -> int:
    """Correct predictions of six, found in the cache if they were asked of the same model before."""
    return int(correct_predictions(model, ImageSet(model, SIX), "the same words")[:, 0].sum())


@pytest.mark.parametrize("reverse", [False, True])
def test_a_context_inside_another_leaves_it_as_it_was_and_neither_is_cached_as_the_other(reverse):
    """Of one inside the other, leaving the inner undid both, and the accuracy of the intact model was kept as the outer's."""
    model = planted(VIT, 2)
    outer, inner = (cls_only(model, 1), isolate_cls(model, 1)) if reverse else (isolate_cls(model, 3), cls_only(model, 1))
    assert accuracy(model) == 6
    with outer:
        with inner:
            assert accuracy(model) == 2
        assert accuracy(model) == 2 and named(model, CORNER)[0] == [0] * 4
    assert accuracy(model) == 6
    with isolate_cls(model, 1):  # of blocks that read nothing
        with isolate_cls(model, 2):
            assert accuracy(model) == 6
        assert accuracy(model) == 6
    assert_untouched(model)


def test_a_network_that_was_hooked_or_changed_in_place_has_its_own_accuracy():
    model = planted(VIT, 2)
    weight = model.module.blocks[2].attn.proj.weight.data
    assert both(cls_isolation(model, SIX))[0] == SEEN
    handle = model.module.blocks[2].attn.register_forward_hook(lambda module, arguments, output: 0 * output)
    assert both(cls_isolation(model, SIX))[0] == UNREAD
    handle.remove()
    weight.zero_()
    assert both(cls_isolation(model, SIX))[0] == UNREAD
    weight.copy_(torch.eye(8))
    assert both(cls_isolation(model, SIX))[0] == SEEN


def test_patches_stand_still_in_cls_only_blocks_whatever_contexts_are_inside_or_around():
    model = planted(VIT, 0)
    model.module.blocks[0].attn.proj.weight.data *= 10
    corner = [[0] * 4, [0] * 4, [0, 0, 2, 2], [0, 0, 2, 2]]
    with cls_only(model, 0), isolate_cls(model, 3):
        assert named(model, CORNER) == corner
    with isolate_cls(model, 3), cls_only(model, 0):
        assert named(model, CORNER) == corner


def test_a_context_acts_in_the_thread_that_entered_it_alone():
    model = planted(VIT, 0)
    inputs = model.normalize(SIX.images)
    whole = model.module(inputs)
    with isolate_cls(model, 3), ThreadPoolExecutor(1) as other:
        assert not torch.allclose(model.module(inputs), whole)
        assert torch.equal(other.submit(model.module, inputs).result(), whole)


def test_a_result_says_what_was_measured_on_what():
    for experiment, first in ((cls_isolation, "isolated blocks"), (cls_only_from, "CLS-only from block")):
        result = experiment(planted(VIT, 1), SIX, n=5)  # without the sixth image, two of five are green
        assert list(result.table.columns) == [first, "measure", "value", "low", "high", "n"]
        assert result.where(measure="top-1").table["value"].drop_duplicates().sort_values().tolist() == [40, 100]
        assert result.table[first].tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and set(result.table["n"]) == {5}
        assert result.title.startswith("planted: ") and result.title.endswith("(5 images)")
    assert head_on_tokens(small(VIT, **SMALL), WORLD, n=3).title.startswith("small (untrained): ")


@pytest.mark.parametrize(("family", "arguments"), [
    (VIT, SMALL), (VIT, {**SMALL, "reg_tokens": 4}), (DEIT, SMALL), ("convit.ConVit", {**SMALL, "local_up_to_layer": 2}),
    ("pit.PoolingVisionTransformer", {"img_size": 32, "patch_size": 8, "stride": 4, "base_dims": (8, 8, 8), "depth": (1, 1, 1),
                                      "heads": (1, 2, 2)}),
], ids=["ViT", "registers", "DeiT", "ConViT", "PiT"])
def test_any_model_with_a_class_token_is_as_trained_where_nothing_is_changed(family, arguments):
    model, scenes = small(family, **arguments), WORLD.batch(range(20))
    answers = model(scenes.images).topk(5).indices
    right, found = answers == scenes.concept[:, None], [both(experiment(model, WORLD, n=20)) for experiment in ALL]
    assert len(answers[:, 0].unique()) > 1  # else any model would do
    assert found[0][0] == found[1][-1] == found[2][0] == (5 * right[:, 0].sum(), 5 * right.any(1).sum())
    assert [len(rows) for rows in found] == [4, 4, 4]  # 0 to 3 blocks; class token, mean, maximum, each


def test_blocks_before_the_class_token_is_there_are_run_as_they_are():
    model = small("convit.ConVit", **SMALL, local_up_to_layer=2)
    apart, single = both(cls_isolation(model, WORLD, n=40)), both(cls_only_from(model, WORLD, n=40))
    assert apart[0] == apart[1] == apart[2] != apart[3]  # ConViT adds it after two of three blocks
    assert single == [apart[3]] * 3 + [apart[0]]


def test_a_model_trained_with_captions_works_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    tower = TextTower(["a", "flat", "icon", "of", *NAMES], 8)
    model = VisionModel(planted(VIT, 1).module, "captions", 32, class_names=NAMES[:3], text=tower, styles=("flat",))
    right = [NAMES[i] == label for i, label in zip(model(SIX.images).argmax(1), SIX.labels, strict=True)]
    assert both(cls_isolation(model, SIX))[0] == (round(100 * sum(right) / 6, 2), 100)
    monkeypatch.setattr(vision_model, "class_embeddings", lambda *_: torch.eye(3, 8))  # as a tower has that learned the names
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / "of the changed model"))  # whose weights' hash is that of before
    model = VisionModel(planted(VIT, 1).module, "captions", 32, class_names=NAMES[:3], text=tower, styles=("flat",))
    assert both(cls_isolation(model, SIX)) == [SEEN, SEEN, (33.33, 100), (33.33, 100)]  # three classes are all in the first five
    assert named(model, CORNER) == [[0] * 4, [0] * 4, [0, 0, 2, 2], [0, 0, 2, 2]]


# The head on other tokens


def test_rows_of_the_head_on_tokens_are_what_they_are_by_hand():
    # As the model sees them, four of 16 patches are (-1, -1, 1) and 12 are (1, 0.9, -1). Normalized over eight units:
    #   blue: mean -1/8, deviation 0.600: red and green -1.46, blue 1.88, others 0.21
    #   nearly yellow: mean 0.9/8, deviation 0.582: red 1.53, green 1.35, blue -1.91, others -0.19
    # Mean of all: red 0.78, green 0.65, others -0.09, blue -0.96, the last. Maximum: blue 1.88. Class token: reads nothing.
    model = planted(VIT, None)
    table = head_on_tokens(model, labeled(CORNER.expand(4, -1, -1, -1), ["blue"] * 4)).table
    found = {name: rows["value"].tolist() for name, rows in table.groupby("head reads", sort=False)}
    assert found == {"CLS": [0, 100], "mean of patch tokens": [0, 0], "maximum of patch tokens": [100, 100],
                     "each patch token": [25, 25]}
    assert set(table["n"]) == {4} and table["measure"].tolist() == ["top-1", "top-5"] * 4
    assert named(model, CORNER) == [[0] * 4, [0] * 4, [0, 0, 2, 2], [0, 0, 2, 2]]  # patches are in raster order


@pytest.mark.parametrize(("family", "prefix"), [(VIT, 1), (DEIT, 2)])
def test_patch_logits_are_those_of_the_heads_on_each_patch_token(family, prefix):
    model, images = small(family, **SMALL), torch.rand(3, 3, 32, 32)
    tokens = model.module.forward_features(model.normalize(images))[:, prefix:]  # after the last norm
    heads = [model.module.head, *([model.module.head_dist] if family == DEIT else [])]
    found, expected = patch_logits(model, images), sum(head(tokens) for head in heads) / len(heads)
    assert found.shape == (3, 16, 6) and torch.allclose(found, expected, atol=1e-4)


# What is refused, and what is left behind


@pytest.mark.parametrize(("family", "arguments"), [
    (VIT, {**SMALL, "global_pool": "avg"}), (VIT, {**SMALL, "global_pool": "avg", "class_token": False}),
    ("swin_transformer.SwinTransformer", {**STAGES, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}),
    ("twins.Twins", {**STAGES, "embed_dims": (16,) * 3, "num_heads": (2,) * 3, "mlp_ratios": (2,) * 3, "depths": (1,) * 3,
                     "sr_ratios": (4, 2, 1)}),
    ("resnet.ResNet", {"block": BasicBlock, "layers": (1,) * 4, "channels": (8,) * 4}),
    ("coat.CoaT", {**STAGES, "embed_dims": (16,) * 4, "serial_depths": (1,) * 4, "parallel_depth": 1}),
], ids=["averaging ViT", "ViT without class token", "Swin", "Twins", "ResNet", "CoaT"])
def test_models_without_a_class_token_after_the_last_block_say_so(family, arguments):
    model = VisionModel(timm(family, **arguments), "tokenless", 32, class_names=WORLD.concepts)
    for experiment in ALL:
        with pytest.raises(NotApplicable, match="tokenless does not classify from a CLS token of its last block"):
            experiment(model, WORLD, n=2)
    assert_untouched(model)


@pytest.mark.parametrize(("family", "more"), [("eva.Eva", {"use_rot_pos_emb": True}), ("beit.Beit", {})], ids=["Eva", "BEiT"])
def test_models_whose_blocks_are_told_more_than_tokens_are_run_or_refused_in_a_sentence(family, more):
    model = small(family, **SMALL, global_pool="token", **more)
    for experiment in ALL:
        try:
            assert (experiment(model, WORLD, n=2).table["n"] == 2).all()
        except VitvizError as error:
            assert "small" in str(error)


def assert_untouched(model: VisionModel) -> None:
    for name, module in model.module.named_modules():
        assert "forward" not in vars(module) and not module._forward_hooks and not module._forward_pre_hooks, name
    with ThreadPoolExecutor(1) as other:  # a thread that finds the lock free and leaves it so
        assert other.submit(lambda: model.lock.acquire(blocking=False) and not model.lock.release()).result()


class Fused(nn.Linear):
    """A head that fails at its ``fuse``-th call."""

    _fuse, error = 0, KeyboardInterrupt

    def forward(self, x: Tensor) -> Tensor:
        self._fuse -= 1
        if not self._fuse:
            raise self.error
        return super().forward(x)


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("experiment", ALL)
def test_the_model_is_as_before_wherever_an_experiment_is_stopped(experiment, error, tmp_path, monkeypatch):
    head = Fused(8, 8)
    for fuse in range(1, 6):  # in the search for sites, in the probe of the head, and in the passes on images
        monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / str(fuse)))
        model = planted(VIT, 1)
        head.load_state_dict(model.module.head.state_dict())
        model.module.head, head._fuse, head.error = head, fuse, error
        with suppress(RuntimeError, KeyboardInterrupt, VitvizError):
            experiment(model, SIX)
        assert head._fuse <= 0
        assert torch.equal(model(CORNER), planted(VIT, 1)(CORNER))
        assert_untouched(model)


def test_an_error_of_the_machine_is_not_taken_for_a_missing_class_token():
    """Out of memory in the probe of the head was remembered as "no class token"."""
    model, head = planted(VIT, 1), Fused(8, 8)
    head.load_state_dict(model.module.head.state_dict())
    model.module.head, head.error = head, torch.OutOfMemoryError
    head._fuse = 3  # the first pass finds the sites, the second is the whole model's, the third without patches
    assert both(cls_isolation(model, SIX))[0] == SEEN
    model = planted(VIT, 1)
    model.module.head, head._fuse = head, 2
    with pytest.raises(torch.OutOfMemoryError):
        cls_isolation(model, SIX)
    assert both(cls_isolation(model, SIX))[0] == SEEN


@pytest.mark.parametrize("experiment", ALL)
def test_the_model_is_as_before_after_success_and_after_a_label_it_does_not_know(experiment):
    model = planted(VIT, 1)
    before, _ = model(CORNER), experiment(model, SIX)
    assert torch.equal(model(CORNER), before)
    assert_untouched(model)
    with pytest.raises(VitvizError, match="knows no class 'wolf'"):  # found half-way, in the second batch of 16
        experiment(model, labeled(torch.cat([SIX.images] * 3), SIX.labels * 2 + ["red"] * 5 + ["wolf"]))
    assert torch.equal(model(CORNER), before)
    assert_untouched(model)
