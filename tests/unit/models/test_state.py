"""One model, many users: passes of other threads, hooks of others, weights that change; and what is refused."""

import math
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import vitviz_nb as vv
from vitviz_nb.models import vision_model
from vitviz_nb.models.cards import embedded_names
from vitviz_nb.models.reading import activations, tokens
from vitviz_nb.models.sites import check_neurons, find_site, find_sites
from vitviz_nb.models.text_tower import TextTower
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils import cache
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize.recipe import Recipe
from vitviz_nb.visualize.scores import reference_activations
from vitviz_nb.visualize.visualizer import Visualizer


def images(n: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


# Threads


def in_threads(*jobs) -> list:
    """What each job returns, all run at the same time, each in a thread of its own; an error of one is raised here."""
    results, errors = [None] * len(jobs), []

    def run(i: int) -> None:
        torch.set_num_threads(1)  # so that sums are added up in the same order, however busy the machine is
        try:
            results[i] = jobs[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_passes_of_other_threads_change_nothing_and_are_not_changed(tiny_vit: VisionModel, seconds: float):
    """A picture streams, references are measured and logits are asked for: each is what it is alone, to the last bit."""
    shown, reference = images(16), images(64, seed=2)

    def streamed() -> torch.Tensor:
        viewer = Visualizer(tiny_vit, Recipe(steps=30, copies=2), images=reference, keep=False)
        return [frame.pictures for frame in viewer.stream(-1, [0, 5], every=3)][-1]

    def referenced() -> torch.Tensor:
        return torch.cat([activations(tiny_vit, None, part)[-1] for part in reference.split(4)])

    def answered() -> torch.Tensor:
        return tiny_vit(shown)

    jobs = (streamed, referenced, answered)
    alone = [in_threads(job)[0] for job in jobs]
    end, rounds = time.monotonic() + seconds, [0, 0, 0]

    def again(i: int):
        def loop() -> None:
            while time.monotonic() < end or not rounds[i]:
                assert torch.equal(jobs[i](), alone[i])
                rounds[i] += 1

        return loop

    in_threads(*map(again, range(3)))
    assert all(rounds)


def test_a_pass_that_does_not_take_the_lock_is_not_seen_by_hooks(tiny_vit: VisionModel):
    """``model.module(x)`` in another cell, while a site is read in a thread."""
    site, inputs = find_site(tiny_vit), tiny_vit.normalize(images())
    expected, logits = tokens(tiny_vit, site, inputs), tiny_vit.module(inputs)
    inside, other = threading.Event(), threading.Event()

    def wait(module, arguments):
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            assert other.wait(10)

    handle = tiny_vit.module.blocks[0].register_forward_pre_hook(wait)
    try:
        results = []
        thread = threading.Thread(target=lambda: results.append(tokens(tiny_vit, site, inputs)))
        thread.start()
        assert inside.wait(10)
        assert torch.equal(tiny_vit.module(inputs), logits)  # ran while the other thread's hooks were in place
        other.set()
        thread.join()
    finally:
        other.set()
        handle.remove()
    assert torch.equal(results[0], expected)


def test_a_network_in_training_is_read_in_eval_mode_and_put_back():
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 64, 4))
    model = VisionModel(module, "dropped", 8)
    module.train()
    shown = torch.rand(2, 3, 8, 8)
    assert torch.equal(model(shown), model(shown)) and module.training and module[1].training


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
def test_a_network_of_another_precision_takes_images_as_they_come(precision: torch.dtype, tiny_vit: VisionModel):
    expected = tiny_vit(images())
    tiny_vit.module.to(precision)
    logits = tiny_vit(images())
    assert logits.dtype == precision and torch.allclose(logits.float(), expected, atol=0.05)
    assert activations(tiny_vit, "mlp", images())[1].shape == (4, 128)


# What the model computes at this moment


def test_the_state_follows_a_weight_changed_in_place(tiny_vit: VisionModel):
    before = tiny_vit.state()
    assert before == tiny_vit.state() and tiny_vit.unchanged
    tiny_vit.module.blocks[0].mlp.fc1.weight.data.mul_(3)  # no version counter of torch notices this
    assert tiny_vit.state() != before and tiny_vit.weights_hash != before["weights"]


def _optimizer_step(weight):
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()


_WRITES = {
    "one number": lambda weight: weight.data[3, 5].add_(1),
    "the lowest bit": lambda weight: weight.data.view(torch.uint8)[0, 0].bitwise_xor_(1),
    "the highest bit": lambda weight: weight.data.view(torch.uint8)[-1, -1].bitwise_xor_(128),
    "every second sign": lambda weight: weight.data[:, 1::2].neg_(),
    "all signs": lambda weight: weight.data.neg_(),
    "two neighbors swapped": lambda weight: weight.data[0, :2].copy_(weight.data[0, :2].flip(0)),
    "two neurons swapped": lambda weight: weight.data[:2].copy_(weight.data[:2].flip(0)),
    "two halves swapped": lambda weight: weight.data.copy_(weight.data.roll(len(weight) // 2, 0)),
    "all the same": lambda weight: weight.data.fill_(1),
    "nothing": lambda weight: weight.data.zero_(),
    "another tensor": lambda weight: setattr(weight, "data", 2 * weight.data),
    "the storage": lambda weight: weight.untyped_storage().copy_((weight.data + 1).untyped_storage()),
    "a view of NumPy's": lambda weight: np.negative(view := weight.detach().view(torch.int16).numpy(), out=view),
    "an optimizer": _optimizer_step,
}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("write", _WRITES.values(), ids=_WRITES)
def test_no_way_to_write_a_weight_escapes(write, precision: torch.dtype, tiny_vit: VisionModel):
    weight = tiny_vit.module.to(precision).blocks[0].mlp.fc1.weight
    before, kept = tiny_vit.state(), weight.detach().clone()
    write(weight)
    assert not torch.equal(weight, kept) and tiny_vit.state() not in (before, None)
    weight.data.copy_(kept)
    assert tiny_vit.state() == before


def test_weights_that_did_not_change_are_not_hashed_again(tiny_vit: VisionModel, monkeypatch):
    hashed, real = [], vision_model._hash
    monkeypatch.setattr(vision_model, "_hash", lambda *given: hashed.append(given) or real(*given))
    states = [tiny_vit.state() for _ in range(3)]
    assert states[0] == states[2] and len(hashed) == 1


def test_weights_moved_to_a_card_are_not_hashed_again(tiny_vit: VisionModel, monkeypatch):
    """Checksums have a formula of their own there, which is tried here on tensors that only say they are on one."""
    before, hashed = tiny_vit.state(), []
    monkeypatch.setattr(vision_model, "_hash", lambda *given: str(hashed.append(given)))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert tiny_vit.state() == before and not hashed
    tiny_vit.module.blocks[0].mlp.fc1.weight.data[:, 1::2].neg_()
    assert tiny_vit.state() != before and hashed


def test_a_hash_belongs_to_the_weights_that_were_hashed(tiny_vit: VisionModel, monkeypatch):
    """Although another thread changes them for a moment."""
    expected, real = VisionModel(tiny_vit.module, tiny_vit.name, 32).weights_hash, vision_model._hash
    bias = tiny_vit.module.head.bias.data

    def meanwhile(*given) -> str:
        bias.add_(1)
        try:
            return real(*given)
        finally:
            bias.sub_(1)

    with monkeypatch.context() as patch:
        patch.setattr(vision_model, "_hash", meanwhile)
        assert tiny_vit.weights_hash != expected
    assert tiny_vit.weights_hash == expected


@pytest.mark.parametrize("name", embedded_names())
def test_an_embedded_model_as_it_is_loaded_is_unchanged(name):
    assert vv.load(name, device="cpu").unchanged


def test_a_model_that_was_made_under_a_foreign_hook_is_unchanged_without_it(shelf):
    undo = _global_hook(None)
    try:
        model = vv.load("emoji-vit", device="cpu")
        assert not model.unchanged
    finally:
        undo()
    assert model.unchanged


def test_another_activation_function_in_the_text_tower_is_a_change():
    clip = vv.load("emoji-clip", device="cpu")
    before, layer = clip.state(), clip.text.layers.layers[0]
    gelu, layer.activation = layer.activation, torch.relu
    assert clip.state() not in (before, None) and not clip.unchanged
    layer.activation = gelu
    assert clip.state() == before and clip.unchanged


@pytest.mark.parametrize("change", [
    lambda module: module.half(), lambda module: setattr(module.blocks[0].mlp, "act", nn.ReLU()),
    lambda module: setattr(module.norm, "eps", 0.1), lambda module: setattr(module.blocks[0].attn, "scale", 0.0),
    lambda module: setattr(module, "global_pool", "avg"), lambda module: module.register_buffer("mask", torch.ones(2), False),
], ids=["half precision", "another activation function", "another epsilon", "another number", "another setting", "a constant"])
def test_the_state_follows_what_no_weight_shows(change, tiny_vit: VisionModel):
    before = tiny_vit.state()
    change(tiny_vit.module)
    assert tiny_vit.state() not in (before, None) and not tiny_vit.unchanged


def _forward_hook(module):
    handle = module.blocks[0].register_forward_hook(lambda block, arguments, output: output * 0)
    return handle.remove


def _pre_hook(module):
    return module.blocks[1].attn.register_forward_pre_hook(lambda attention, arguments: None).remove


def _global_hook(module):
    return nn.modules.module.register_module_forward_hook(lambda part, arguments, output: None).remove


def _replaced_forward(module):
    module.blocks[0].forward = lambda x: x
    return lambda: module.blocks[0].__dict__.pop("forward")


def _global_backward_hook(module):
    return nn.modules.module.register_module_full_backward_hook(lambda part, before, after: None).remove


def _replaced_method(module):
    head = module.forward_head
    module.forward_head = lambda x, **more: -head(x, **more)
    return lambda: module.__dict__.pop("forward_head")


def _patched_class(module):
    kind = type(module.blocks[0].attn)
    forward = kind.forward
    kind.forward = lambda self, x, *more, **named: forward(self, x, *more, **named) * 0
    return lambda: setattr(kind, "forward", forward)


_FOREIGN = [_forward_hook, _pre_hook, _global_hook, _global_backward_hook, _replaced_forward, _replaced_method, _patched_class]


@pytest.mark.parametrize("change", _FOREIGN)
def test_with_foreign_hooks_the_state_is_unknown_and_no_cache_is_used(change, tiny_vit: VisionModel):
    before, undo = tiny_vit.state(), change(tiny_vit.module)
    try:
        assert tiny_vit.state() is None and not tiny_vit.unchanged
        assert cache.entry(tiny_vit, {"layer": 0}, "references") is None
        made = [tiny_vit.remember("key", lambda n=n: n) for n in range(2)]
        assert made == [0, 1]  # made each time
    finally:
        undo()
    assert tiny_vit.state() == before and cache.entry(tiny_vit, {"layer": 0}, "references") is not None


def test_a_class_of_ones_own_is_read_so_that_an_edited_one_is_another_model(tiny_vit: VisionModel):
    def state(text: str, **settings) -> dict:
        space: dict = {}
        exec(f"from torch import nn\nclass Mine(nn.Module):\n    def forward(self, x):\n        return {text}", space)
        module = space["Mine"]()
        vars(module).update(settings)
        tiny_vit.module.blocks[0].mlp.act = module
        return tiny_vit.state()

    assert state("x * 2") == state("x * 2") != state("x * 5")
    assert state("x * self.k", k=1) != state("x * self.k", k=5)


def test_a_network_that_counts_its_passes_is_the_same_after_each():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.calls, self.shape = nn.Linear(3 * 64, 4), 0, None

        def forward(self, x):
            self.calls, self.shape = self.calls + 1, tuple(x.shape[2:])
            return self.head(x.flatten(1))

    model = VisionModel(Counting(), "counting", 8)
    before = model.state()
    model(torch.rand(2, 3, 8, 8))
    assert model.state() == before is not None
    model.module.shape = (9, 9)
    assert model.state() != before


def test_hooks_and_weights_of_a_text_tower_count_too(tiny_vit: VisionModel):
    text = TextTower(["a", "ant", "bee", "cat", "dog"], 4)
    model = VisionModel(tiny_vit.module, "clip", 32, class_names=["ant", "bee", "cat", "dog"], text=text)
    before = model.state()
    handle = text.register_forward_hook(lambda module, arguments, output: output.flip(0))
    assert model.state() is None
    handle.remove()
    text.head.bias.data.add_(1)
    assert model.state() not in (before, None)


def test_a_unit_is_read_through_a_replaced_layer(tiny_vit: VisionModel):
    """One wanted unit is computed alone, but not where its layer computes something else than its weights say."""
    site, inputs = find_site(tiny_vit), tiny_vit.normalize(images())
    own = replace(site, own=torch.tensor([3] * len(inputs)))
    layer = tiny_vit.module.blocks[1].mlp.fc1
    layer.forward = lambda x: nn.functional.linear(x, -layer.weight, -layer.bias)
    assert torch.equal(tokens(tiny_vit, own, inputs)[..., 0], tokens(tiny_vit, site, inputs)[..., 3])


def test_class_names_are_the_models_own(tiny_vit: VisionModel):
    names = ["ant", "bee", "cat", "dog"]
    model = VisionModel(tiny_vit.module, "tiny", 32, class_names=names)
    names.reverse()
    assert model.class_names == ["ant", "bee", "cat", "dog"]


def test_changes_in_force_are_part_of_the_state_and_nest(tiny_vit: VisionModel):
    before = tiny_vit.state()
    with tiny_vit.changed("first"):
        outer = tiny_vit.state()
        with tiny_vit.changed("second"):
            assert tiny_vit.state()["changes"] == ["first", "second"] and not tiny_vit.unchanged
        assert tiny_vit.state() == outer != before
    assert tiny_vit.state() == before


def test_what_is_remembered_is_made_anew_when_the_weights_change(tiny_vit: VisionModel):
    made = []

    def make() -> int:
        made.append(None)
        return len(made)

    assert [tiny_vit.remember("key", make) for _ in range(3)] == [1, 1, 1]
    tiny_vit.module.head.bias.data.add_(1)
    assert [tiny_vit.remember("key", make) for _ in range(2)] == [2, 2]


def test_training_between_two_reference_tables_gives_two_tables(tiny_vit: VisionModel):
    reference = Visualizer(tiny_vit, Recipe(steps=1), images=images(8)).reference
    first = reference_activations(tiny_vit, find_site(tiny_vit), reference)
    tiny_vit.module.blocks[1].mlp.fc1.bias.data.add_(1)
    second = reference_activations(tiny_vit, find_site(tiny_vit), reference)
    fresh = torch.cat([activations(tiny_vit, "mlp", part)[-1] for part in images(8).split(16)])
    assert torch.equal(second, fresh) and not torch.allclose(first, second)


def test_sites_are_found_again_when_a_module_is_replaced(tiny_vit: VisionModel):
    assert len(find_sites(tiny_vit)["mlp"]) == 2
    tiny_vit.module.blocks = tiny_vit.module.blocks[:1]
    assert len(find_sites(tiny_vit)["mlp"]) == 1


# Nonsense is refused


@pytest.mark.parametrize(("shown", "says"), [
    (255 * images(), "Divide 0-255 images by 255"), (2 * images() - 1, "not normalized"), (images() * math.nan, "NaN"),
    (images()[0], r"shape \(3, 32, 32\)"), (images().int(), "int32"), ([[0.0]], r"got \[\[0.0\]\]"),
    (torch.rand(1, 3, 16, 16), r"\(1, 3, 16, 16\)"),
])
def test_images_out_of_range_or_of_another_kind_are_refused(shown, says: str, tiny_vit: VisionModel):
    for ask in (tiny_vit, lambda x: activations(tiny_vit, "mlp", x)):
        with pytest.raises(VitvizError, match=says):
            ask(shown)


def test_weights_that_became_nan_after_loading_are_named(tiny_vit: VisionModel):
    tiny_vit.module.blocks[1].mlp.fc2.weight.data[0, 0] = math.nan
    for ask in (tiny_vit, lambda x: activations(tiny_vit, "residual", x)):
        with pytest.raises(VitvizError, match=r"NaN or infinite numbers \(in blocks\.1\.mlp\.fc2\.weight\)"):
            ask(images())


def test_class_names_of_another_number_than_logits_are_refused(tiny_vit: VisionModel):
    tiny_vit.class_names = ["ant"]
    with pytest.raises(VitvizError, match="1 class names, but 4 logits"):
        tiny_vit(images())


def test_a_network_that_cannot_run_on_its_inputs_says_so(tiny_vit: VisionModel):
    with pytest.raises(VitvizError, match=r"cannot be run on inputs of shape \(11, 3, 64, 64\)"):
        find_sites(VisionModel(tiny_vit.module, "tiny", 64))


@pytest.mark.parametrize("arguments", [
    {"styles": 5}, {"text": 5}, {"card": 5}, {"class_names": 5}, {"mean": (123.7, 116.3, 103.5)}, {"mean": (0.5,)},
    {"mean": "half"}, {"std": (1.0, 0.0, 1.0)}, {"std": (1, math.nan, 1)}, {"image_size": 0}, {"image_size": 2.5},
    {"image_size": 10**9}, {"name": ""}, {"name": 3}, {"module": "resnet50"},
])
def test_a_model_that_cannot_be_is_refused_in_one_sentence(arguments: dict, tiny_vit: VisionModel):
    with pytest.raises(VitvizError):
        VisionModel(**{"module": tiny_vit.module, "name": "tiny", "image_size": 32} | arguments)


@pytest.mark.parametrize("neurons", [torch.tensor(3), torch.tensor([3]), [torch.tensor(3)], range(3, 4), (3,), 3])
def test_neurons_may_be_numbers_tensors_and_ranges(neurons, tiny_vit: VisionModel):
    assert check_neurons(find_site(tiny_vit), neurons) == [3]


@pytest.mark.parametrize("neurons", ["3", 3.0, None, [3.5], torch.tensor([[3]]), torch.tensor(0.5), range(10**9), {3: 3}, [True]])
def test_neurons_of_another_kind_are_refused_at_once(neurons, tiny_vit: VisionModel):
    with pytest.raises(VitvizError, match="has neurons|whole numbers"):
        check_neurons(find_site(tiny_vit), neurons)


@pytest.mark.parametrize(("layer", "kind"), [
    ("last", None), (2.0, None), (None, None), (True, None), (0, 3), (0, "mpl"), (99, "mlp"),
])
def test_addresses_of_another_kind_are_refused(layer, kind, tiny_vit: VisionModel):
    with pytest.raises(VitvizError, match="layer|kind"):
        find_site(tiny_vit, layer, kind)


def test_a_layer_may_be_a_tensor_and_is_the_last_unless_given(tiny_vit: VisionModel):
    assert find_site(tiny_vit, torch.tensor(-1)) == find_site(tiny_vit) == find_sites(tiny_vit)["mlp"][1]
