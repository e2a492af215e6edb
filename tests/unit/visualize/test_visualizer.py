"""The visualizer finds planted optima; a picture does not depend on how it was made; and nothing stays behind."""

import math
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models import coat, convit, deit, pit, resnet, swin_transformer, twins
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

import vitviz_nb as vv
from vitviz_nb.models.reading import activations, tokens
from vitviz_nb.models.sites import KINDS, find_site
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils import random_streams
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize import hardware
from vitviz_nb.visualize import visualizer as visualizer_module
from vitviz_nb.visualize.objective import Augmentation, loss
from vitviz_nb.visualize.parameterization import Pixels, parameterization
from vitviz_nb.visualize.recipe import Recipe
from vitviz_nb.visualize.rendering import Rendering
from vitviz_nb.visualize.scores import reference_activations
from vitviz_nb.visualize.visualizer import Visualizer

SIZE, PATCH = 32, 8
STEPS = 40
RECIPE = Recipe(steps=STEPS, copies=2, blur=0.05)
SHORT = Recipe(steps=10, copies=1)
# What two ways of making a picture may differ by, of 1. On the CPUs tried they differ by 0 to 2e-6.
TOLERANCE = 1e-3
PATTERN, RED, DEAD, GREEN = range(4)  # units of the planted model


class Planted(nn.Module):
    """Patches as they are, then an MLP whose hidden units have known optima."""

    def __init__(self, rows: Tensor, bias: Tensor):
        super().__init__()
        n = 3 * PATCH**2
        self.patches = nn.Conv2d(3, n, PATCH, PATCH, bias=False)
        self.patches.weight.data = torch.eye(n).view(n, 3, PATCH, PATCH)
        self.mlp = Mlp(n, len(rows), 4)
        self.mlp.fc1.weight.data, self.mlp.fc1.bias.data = rows, bias

    def forward(self, images: Tensor) -> Tensor:
        return self.mlp(self.patches(images).flatten(2).transpose(1, 2)).mean(1)


@pytest.fixture
def own_cache(tmp_path: Path) -> Path:
    return tmp_path / "vitviz_cache"


@pytest.fixture(scope="module")
def wanted_patch() -> Tensor:
    """A patch of zeros and ones."""
    return (torch.rand(3, PATCH, PATCH, generator=torch.Generator().manual_seed(4)) > 0.5).float()


@pytest.fixture(scope="module")
def planted(wanted_patch: Tensor) -> VisionModel:
    rows, bias = torch.zeros(4, 3, PATCH, PATCH), torch.tensor([3.0, 3.0, -30.0, 3.0])
    rows[PATTERN] = (wanted_patch - 0.5) / 20  # rises with every pixel that is wanted, falls with the others
    rows[RED, 0], rows[RED, 1:] = 0.05, -0.05
    rows[GREEN, 1], rows[GREEN, [0, 2]] = 0.05, -0.05
    return VisionModel(Planted(rows.flatten(1), bias), "planted", SIZE)


@pytest.fixture(scope="module")
def gray() -> Tensor:
    """Ten flat images, from dark to bright."""
    return torch.linspace(0.05, 0.95, 10).view(-1, 1, 1, 1).expand(-1, 3, SIZE, SIZE).contiguous()


def make_vit(seed: int = 0) -> VisionModel:
    torch.manual_seed(seed)
    module = VisionTransformer(img_size=SIZE, patch_size=PATCH, embed_dim=32, depth=2, num_heads=2, num_classes=4)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data *= 6  # timm's 0.02 would leave so narrow a network almost linear, and its units almost still
    return VisionModel(module, "little-vit", SIZE)


@pytest.fixture
def vit() -> VisionModel:
    return make_vit()


@pytest.fixture(scope="module")
def speckles() -> Tensor:
    """Twenty images of independent pixels."""
    return torch.rand(20, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(6))


def hooks(model: VisionModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.module.modules())


@pytest.fixture
def fail_at(monkeypatch) -> Callable:
    """Makes a pass raise ``error``, once: the ``call``-th step's, or the ``call``-th in which a curve is read."""
    forward = VisionModel.forward

    def prepare(call: int, error: BaseException, reading: bool = False) -> None:
        left = [call]

        def failing(self, inputs):
            left[0] -= torch.is_grad_enabled() != reading
            if left[0] == 0:
                left[0] = -1
                raise error
            return forward(self, inputs)

        monkeypatch.setattr(VisionModel, "forward", failing)

    return prepare


def noise(recipe: Recipe, kind: str, layer: int, neurons: list[int], size: int = SIZE, seed: int = 0) -> Tensor:
    """The images from which neurons' ascents begin."""
    return parameterization(recipe, size).start(random_streams.keys(seed, list(KINDS).index(kind), layer, np.array(neurons)))


# Planted neurons


def test_planted_pattern_is_found(planted, wanted_patch, gray):
    found = Visualizer(planted, Recipe(steps=60, copies=2, tv=0, jitter=0), gray).render(0, PATTERN).pictures[0]
    wanted = wanted_patch.repeat(1, SIZE // PATCH, SIZE // PATCH)
    assert ((found > 0.5) == (wanted > 0.5)).float().mean() > 0.95
    assert (found - wanted).abs().mean() < 0.05


def test_planted_color_is_found_by_the_whole_recipe(planted, gray):
    found = Visualizer(planted, Recipe(steps=60, copies=4), gray).render(0, RED).pictures[0]
    red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    assert (found - red).abs().mean() < 0.02


def test_planted_neurons_are_scored_as_planted(planted, speckles):
    rendering = Visualizer(planted, Recipe(steps=60, copies=2, tv=0, jitter=0), speckles).render(0, range(4))
    assert rendering.scores.status == ["alive", "alive", "dead", "alive"]
    assert rendering.scores.percentile == [100, 100, 0, 100]
    assert [rendering.scores.rank[k] for k in (PATTERN, RED, GREEN)] == [1, 1, 1]
    # By hand: normalized, the wanted pixels are 1 and the others -1, so the sum is 192 / 40 + 3 = 7.8; of red, 192 / 20 + 3.
    assert [rendering.scores.activation[k] for k in (PATTERN, RED, DEAD)] == pytest.approx([7.8, 12.6, 0], abs=0.15)
    assert rendering.scores.reference == "20 images"
    assert rendering.caption(DEAD)[1].startswith("dead: ")


def test_picture_that_some_images_beat_is_called_weak(planted, wanted_patch, gray):
    best = wanted_patch.repeat(1, SIZE // PATCH, SIZE // PATCH)[None]
    rendering = Visualizer(planted, Recipe(steps=1, jitter=0), torch.cat([best, gray])).render(0, PATTERN)
    assert rendering.scores.status == ["weak"]
    assert rendering.scores.percentile == pytest.approx([100 * 10 / 11])
    assert rendering.caption(0)[1].startswith("weak: ") and rendering.caption(0)[1].endswith("above 90.9 %")


# Random first layers answer to single pixels, which no picture can offer wherever it is shifted to: hence jitter=0 in these.


def test_picture_raises_its_neuron_above_where_it_began(vit, gray):
    neurons, rows = [3, 50, 127], torch.arange(3)
    viewer = Visualizer(vit, Recipe(steps=STEPS, copies=2, color=0, jitter=0), gray)
    start = noise(viewer.recipe, "mlp", 1, neurons)
    rendering = viewer.render(1, neurons)
    before, after = (activations(vit, "mlp", pictures)[1][rows, neurons] for pictures in (start, rendering.pictures))
    assert (after > before + 1).all()
    assert rendering.scores.activation == pytest.approx(after.tolist(), abs=1e-4)
    assert rendering.pictures.min() >= 0 and rendering.pictures.max() <= 1
    assert rendering.curve_steps == [0, 10, 20, 30, 40] and rendering.curves.shape == (3, 5)
    assert torch.allclose(rendering.curves[:, 0], before, atol=1e-4)
    assert torch.allclose(rendering.curves[:, -1], after, atol=1e-4)


def test_picture_lowers_its_loss_on_copies_it_has_not_seen(vit, gray):
    neurons = [3, 50, 127]
    viewer = Visualizer(vit, Recipe(steps=STEPS, copies=4, jitter=0), gray)
    start, site = noise(viewer.recipe, "mlp", 1, neurons), find_site(vit, 1)
    unseen = Recipe(steps=1, copies=300, jitter=0)
    views = Augmentation(unseen, random_streams.keys(123, np.arange(3)), SIZE, vit.mean, vit.std, "cpu")
    units = torch.tensor(neurons).repeat_interleave(300)[:, None]

    def losses(pictures: Tensor) -> Tensor:
        with torch.no_grad():
            own = tokens(vit, site, views(pictures, 0)).mean(1).gather(1, units)[:, 0]
        return loss(own, pictures, unseen)

    before, after = losses(start), losses(viewer.render(1, neurons).pictures)
    assert (after < before - 0.3).all(), (before, after)


# The same picture, however it is made


def largest_difference(a: Rendering, b: Rendering) -> float:
    assert a.neurons == b.neurons and a.steps == b.steps and a.curve_steps == b.curve_steps
    assert torch.allclose(a.curves, b.curves, atol=TOLERANCE)
    difference = (a.pictures - b.pictures).abs().max().item()
    print(f"largest difference {difference:.1e}")  # pytest -rP shows it
    return difference


NEURONS = [7, 0, 100, 31, 64]


@pytest.fixture
def fresh(vit: VisionModel, gray: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Visualizer]:
    """Each call gives a visualizer with an empty cache."""
    find_site(vit)  # found by a pass, once
    made = []

    def make(recipe: Recipe = RECIPE) -> Visualizer:
        made.append(1)
        monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / f"cache_{len(made)}"))
        return Visualizer(vit, recipe, gray)

    return make


@pytest.fixture(scope="module")
def together(gray, tmp_path_factory) -> Rendering:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITVIZ_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Visualizer(make_vit(), RECIPE, gray).render(-1, NEURONS)


def test_picture_is_the_same_alone_and_batched(fresh, together, passes):
    assert len({picture.numpy().tobytes() for picture in together.pictures}) == 5
    alone = fresh().render(-1, NEURONS[3])
    assert passes == [2] * STEPS
    assert (alone.pictures[0] - together.pictures[3]).abs().max() < TOLERANCE
    assert torch.allclose(alone.curves[0], together.curves[3], atol=TOLERANCE)


def test_picture_is_the_same_in_chunks(fresh, together, passes, monkeypatch):
    monkeypatch.setitem(hardware.VIEWS, "cpu", 4)
    assert largest_difference(fresh().render(-1, NEURONS), together) < TOLERANCE
    assert passes == [4] * STEPS + [4] * STEPS + [2] * STEPS


@pytest.mark.parametrize("at_once", [64, 4, 1])  # at least one picture at a time
def test_picture_is_the_same_when_a_stream_is_left_and_taken_up_again(fresh, together, passes, monkeypatch, at_once):
    monkeypatch.setitem(hardware.VIEWS, "cpu", at_once)
    viewer = fresh()
    for frame in viewer.stream(-1, NEURONS, every=7):
        if frame.steps[0] == 14:
            break
    assert frame.scores is None and not frame.finished
    done = len(passes)
    first = next(iter(viewer.stream(-1, NEURONS, every=7)))
    assert sum(first.steps) > sum(frame.steps)
    assert largest_difference(viewer.render(-1, NEURONS), together) < TOLERANCE
    assert len(passes) <= done + math.ceil(len(NEURONS) * 2 / max(at_once, 2)) * STEPS  # nothing was begun again


@pytest.mark.parametrize("call", [1, 17, 40])
def test_interrupt_returns_what_there_is_and_the_same_call_goes_on(fresh, fail_at, together, vit, passes, call):
    viewer = fresh()
    fail_at(call, KeyboardInterrupt())
    partial = viewer.render(-1, NEURONS)
    assert partial.steps == [call - 1] * 5 and not partial.finished
    assert partial.scores is not None and partial.caption(0)[-1] == f"stopped at step {call - 1}"
    assert len(passes) == call and hooks(vit) == 0
    if call == 17:
        assert partial.curve_steps == [0, 10] and (partial.pictures - together.pictures).abs().max() > 0.01
    assert largest_difference(viewer.render(-1, NEURONS), together) < TOLERANCE
    assert len(passes) == STEPS + 1  # the interrupted pass was made again, nothing else


@pytest.mark.parametrize(("reading", "step"), [(1, 0), (2, 9), (5, 39)])
def test_interrupt_while_a_curve_is_read_loses_no_step_and_no_point(fresh, fail_at, together, vit, passes, reading, step):
    viewer = fresh()
    fail_at(reading, KeyboardInterrupt(), reading=True)
    assert viewer.render(-1, NEURONS).steps == [step] * 5
    assert largest_difference(viewer.render(-1, NEURONS), together) < TOLERANCE
    assert len(passes) == STEPS + (step > 0)


def test_pictures_interrupted_in_their_first_step_go_on_beside_new_ones(fresh, fail_at, together, vit):
    for neurons in (NEURONS, NEURONS[::-1]):
        viewer = fresh()
        fail_at(1, KeyboardInterrupt())
        assert viewer.render(-1, neurons[:2]).steps == [0, 0]
        order = [NEURONS.index(n) for n in neurons]
        assert (viewer.render(-1, neurons).pictures - together.pictures[order]).abs().max() < TOLERANCE


def test_interrupt_in_a_later_chunk_keeps_both_finished_and_begun_pictures(fresh, fail_at, together, vit, monkeypatch):
    monkeypatch.setitem(hardware.VIEWS, "cpu", 4)
    viewer = fresh()
    fail_at(STEPS + 13, KeyboardInterrupt())
    partial = viewer.render(-1, NEURONS)
    assert partial.steps == [STEPS, STEPS, 12, 12, 0]
    assert partial.curves.isnan().sum(1).tolist() == [0, 0, 3, 3, 5]
    assert partial.curve_steps == [0, 10, 20, 30, 40]
    assert largest_difference(viewer.render(-1, NEURONS), together) < TOLERANCE


def test_interrupt_while_scoring_loses_no_picture(fresh, together, monkeypatch):
    score, failed = Visualizer.score, []

    def interrupted(self, rendering):
        if not failed:
            failed.append(1)
            raise KeyboardInterrupt
        return score(self, rendering)

    monkeypatch.setattr(Visualizer, "score", interrupted)
    monkeypatch.setattr(visualizer_module.cache, "write", lambda path, arrays: None)  # a full disk keeps nothing
    rendering = fresh().render(-1, NEURONS)
    assert rendering.finished and rendering.scores
    assert largest_difference(rendering, together) < TOLERANCE


def test_small_changes_of_the_start_stay_small(fresh, together, monkeypatch):
    """Other machines round otherwise: what that does to a picture is bounded, too."""
    nearly = 1e-6 * torch.randn(3, SIZE, SIZE)
    start = Pixels.start
    monkeypatch.setattr(Pixels, "start", lambda self, keys: start(self, keys) + nearly)
    changed = fresh().render(-1, NEURONS)
    assert 0 < largest_difference(changed, together) < TOLERANCE


def test_a_unit_that_is_off_at_the_start_is_woken_by_a_leak_and_not_without():
    rows = torch.zeros(1, 3, PATCH, PATCH)
    rows[0, 0], rows[0, 1:] = 0.2, -0.2  # its input is -8 at gray, far in GELU's flat tail, and 30.4 at red
    asleep = VisionModel(Planted(rows.flatten(1), torch.tensor([-8.0])), "asleep", SIZE)
    recipe = Recipe(steps=STEPS, copies=1, color=0.0, noise=0.0, tv=1e-4, spread=0.2)
    images = torch.linspace(0.05, 0.95, 10).view(-1, 1, 1, 1).expand(-1, 3, SIZE, SIZE).contiguous()
    without, woken = (Visualizer(asleep, replace(recipe, leak=leak), images).render(0, 0) for leak in (0.0, 0.1))
    red = woken.pictures[0, 0].mean() - woken.pictures[0, 1:].mean()
    assert red > 0.9 and woken.scores.activation[0] == pytest.approx(30.4, rel=0.05)
    assert without.scores.activation[0] < 1
    assert woken.curves[0, -1] == pytest.approx(woken.scores.activation[0], rel=1e-4), "what is reported has no leak"


def test_a_blurred_gradient_moves_whole_regions_at_first(vit, gray):
    recipe, parts = Recipe(steps=30, copies=1, lr=0.01, spread=0.1), {}
    for blur in (0.0, 0.5):
        viewer = Visualizer(vit, replace(recipe, blur=blur), gray)
        moved = next(viewer.stream(0, 7, every=1)).pictures[0] - noise(recipe, "mlp", 0, [7])[0]
        parts[blur] = (moved > 0).float().mean((1, 2))  # of a channel's pixels
    assert set(parts[0.5].tolist()) <= {0.0, 1.0}
    assert ((0.2 < parts[0.0]) & (parts[0.0] < 0.8)).all()


@pytest.mark.parametrize(("elsewhere", "copies", "cores"), [(True, 1, 1), (True, 32, 1), (True, 33, 2), (False, 1, 2)])
def test_small_steps_in_another_thread_use_one_core_and_leave_all_others_theirs(vit, gray, monkeypatch, elsewhere, copies, cores):
    before, own, new, forward = torch.get_num_threads(), [], [], VisionModel.forward
    begins = lambda: new.append(torch.get_num_threads())  # noqa: E731

    def watched(self, inputs):
        if torch.is_grad_enabled():
            own.append(torch.get_num_threads())
            in_thread(begins)  # whose number of cores, and so the rounding of its sums, must not depend on this step
            if len(own) == 3:
                raise RuntimeError("in the middle")
        return forward(self, inputs)

    def render():
        with pytest.raises(RuntimeError, match="in the middle"):
            Visualizer(vit, Recipe(steps=5, copies=copies), gray, keep=False).optimize(0, 0)
        own.append(torch.get_num_threads())

    find_site(vit)
    monkeypatch.setattr(VisionModel, "forward", watched)
    torch.set_num_threads(2)
    try:
        in_thread(render) if elsewhere else render()
    finally:
        torch.set_num_threads(before)
    assert own == [cores, cores, cores, 2] and new == [2, 2, 2]


def in_thread(function: Callable) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


# Memory


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int, error: Callable[[], BaseException], after: int = 0) -> list[int]:
    """From step ``after`` on, more than ``most`` images at once are too many; sizes of the steps, minus where it failed."""
    tokens, sizes = visualizer_module.tokens, []

    def limited(model, place, inputs, leak=0.0):
        if not torch.is_grad_enabled():
            return tokens(model, place, inputs, leak)
        fits = len(inputs) <= most or len(sizes) < after
        sizes.append(len(inputs) if fits else -len(inputs))
        if not fits:
            raise error()
        return tokens(model, place, inputs, leak)

    monkeypatch.setattr(visualizer_module, "tokens", limited)
    return sizes


OUT_OF_MEMORY = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "mps": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)."),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried"),
}


@pytest.mark.parametrize(("device", "after"), [("cuda", 0), ("mps", 15), ("cpu", 37)])
def test_out_of_memory_halves_the_batch_changes_no_picture_and_loses_no_step(fresh, together, monkeypatch, device, after):
    sizes, left = short_of_memory(monkeypatch, 4, OUT_OF_MEMORY[device], after), STEPS - after
    assert largest_difference(fresh().render(-1, NEURONS), together) < TOLERANCE
    assert sizes == [10] * after + [-10] + [4] * left + [4] * left + [2] * left


def test_out_of_memory_among_pictures_at_different_steps_skips_none(vit, gray, monkeypatch):
    recipe = Recipe(steps=12, copies=2)
    whole = Visualizer(vit, recipe, gray, keep=False).optimize(-1, range(9))
    monkeypatch.setitem(hardware.VIEWS, "cpu", 14)
    viewer = Visualizer(vit, recipe, gray)
    for frame in viewer.stream(-1, 8):
        if frame.steps == [10]:
            break
    # Seven pictures run out of memory at step 10, too, and go on by threes. When the seventh's turn comes there are beside it
    # one that was not begun and then the one left at step 10.
    short_of_memory(monkeypatch, 6, OUT_OF_MEMORY["cuda"], after=10)
    assert largest_difference(viewer.render(-1, range(9)), whole) < TOLERANCE


def test_single_picture_that_does_not_fit_is_an_error_that_says_what_to_do(fresh, vit, monkeypatch):
    short_of_memory(monkeypatch, 1, OUT_OF_MEMORY["cuda"])
    with pytest.raises(VitvizError, match="not enough memory for one picture with 2 copies at 32 px; use fewer copies"):
        fresh().render(-1, NEURONS)
    assert hooks(vit) == 0


def test_other_errors_pass_unchanged_and_leave_no_hook(fresh, fail_at, vit):
    fail_at(3, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fresh().render(-1, NEURONS)
    assert hooks(vit) == 0


# Cache


def test_finished_pictures_are_never_made_twice(vit, gray, passes):
    made = Visualizer(vit, SHORT, gray).render(-1, NEURONS)
    assert len(passes) == SHORT.steps
    again = Visualizer(make_vit(), SHORT, gray).render(-1, NEURONS[::-1])  # another session, another order
    assert len(passes) == SHORT.steps
    assert torch.equal(again.pictures.flip(0), made.pictures) and torch.equal(again.curves.flip(0), made.curves)
    assert again.finished and again.curve_steps == made.curve_steps and again.scores.rank == made.scores.rank[::-1]
    Visualizer(vit, SHORT, gray).render(-1, [*NEURONS, 5])
    assert passes[10:] == [1] * 10  # only the new one


def test_corrupt_entry_is_dropped_and_made_again(vit, gray, passes, own_cache):
    made = Visualizer(vit, SHORT, gray).render(-1, [7, 8])
    entries = sorted((own_cache / "renderings").rglob("*.npz"))
    assert len(entries) == 2
    warnings.simplefilter("error")  # a file left open, too, is an error: Windows could not drop it
    whole = entries[0].read_bytes()
    for damaged in (b"", b"not a zip file", whole[: len(whole) // 2], whole[:500] + b"\0" * 200 + whole[700:]):
        entries[0].write_bytes(damaged)
        passes.clear()
        again = Visualizer(vit, SHORT, gray).render(-1, [7, 8])
        assert passes == [1] * 10  # the other entry was good
        assert (again.pictures - made.pictures).abs().max() < TOLERANCE
        with np.load(entries[0]) as file:
            assert file["picture"].shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("change", ["recipe", "seed", "weights", "neuron", "layer", "kind", "normalization"])
def test_cache_never_answers_for_another_picture(vit, gray, passes, change):
    made = Visualizer(vit, SHORT, gray).render(1, 7)
    passes.clear()
    model = make_vit(seed=1) if change == "weights" else make_vit()
    if change == "normalization":
        model = VisionModel(model.module, "little-vit", SIZE, mean=(0.4, 0.4, 0.4))
    recipe = replace(SHORT, tv=0.01) if change == "recipe" else SHORT
    other = Visualizer(model, recipe, gray).render(
        layer=0 if change == "layer" else 1, neurons=8 if change == "neuron" else 7,
        kind="residual" if change == "kind" else "mlp", seed=1 if change == "seed" else 0)
    assert len(passes) == SHORT.steps
    assert (other.pictures - made.pictures).abs().max() > 0.01


def test_cache_that_cannot_be_written_is_an_error_before_any_work(vit, gray, passes, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(VitvizError, match="VITVIZ_CACHE, the cache folder .*file/cache cannot be written"):
        Visualizer(vit, SHORT, gray).render(-1, NEURONS)
    assert passes == []


def test_disk_that_fills_up_costs_the_entry_not_the_picture(vit, gray, monkeypatch, own_cache):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    viewer = Visualizer(vit, SHORT, gray)
    viewer.render(-1, 1)  # so that the reference is kept
    monkeypatch.setattr("os.replace", full)
    with pytest.warns(UserWarning, match="was not cached: .* cannot be written .No space left on device"):
        rendering = viewer.render(-1, 2)
    assert rendering.finished and rendering.scores
    assert [p.suffix for p in own_cache.rglob("*") if p.is_file()] == [".npz", ".npz"]  # one picture, one reference


# Pictures of a model that changes


@contextmanager
def zeroed(model: VisionModel) -> Iterator[None]:
    weight = model.module.blocks[0].attn.proj.weight.data
    before = weight.clone()
    weight.zero_()
    yield
    weight.copy_(before)


@contextmanager
def hooked(model: VisionModel) -> Iterator[None]:
    handle = model.module.blocks[0].attn.register_forward_hook(lambda module, arguments, output: output * 0)
    yield
    handle.remove()


@contextmanager
def replaced(model: VisionModel) -> Iterator[None]:
    model.module.blocks[0].attn.forward = lambda x, **more: 0 * x
    yield
    del model.module.blocks[0].attn.forward


@contextmanager
def in_context(model: VisionModel) -> Iterator[None]:
    with model.changed("no attention"), zeroed(model):
        yield


@pytest.mark.parametrize("changed", [zeroed, hooked, replaced, in_context])
@pytest.mark.parametrize("same_visualizer", [True, False])
def test_no_picture_or_score_of_a_changed_model_is_an_older_one_nor_is_left_for_later(vit, gray, changed, same_visualizer):
    viewer = Visualizer(vit, SHORT, gray)
    before = viewer.render(1, 7)
    with changed(vit):
        other = (viewer if same_visualizer else Visualizer(vit, SHORT, gray)).render(1, 7)
        expected = Visualizer(vit, SHORT, gray, keep=False).render(1, 7)
    assert torch.equal(other.pictures, expected.pictures) and other.scores == expected.scores
    assert (other.pictures - before.pictures).abs().max() > 0.01 and other.scores != before.scores
    again = Visualizer(make_vit(), SHORT, gray).render(1, 7)
    assert torch.equal(again.pictures, before.pictures) and again.scores == before.scores


@pytest.mark.parametrize("changed", [zeroed, hooked])
def test_a_partial_picture_is_not_continued_by_another_model(vit, gray, changed):
    viewer = Visualizer(vit, SHORT, gray)
    next(viewer.stream(1, 7, every=5))
    with changed(vit):
        other, expected = viewer.render(1, 7), Visualizer(vit, SHORT, gray, keep=False).render(1, 7)
    assert torch.equal(other.pictures, expected.pictures)


def test_a_recipe_is_not_exchanged_under_a_partial_picture(vit, gray):
    viewer = Visualizer(vit, SHORT, gray)
    next(viewer.stream(1, 7, every=5))
    with pytest.raises(VitvizError, match=r"keeps its recipe, .*vv.Visualizer\(model, recipe\)"):
        viewer.recipe = Recipe(steps=3)
    assert viewer.recipe == SHORT


def test_a_picture_of_a_model_that_changes_while_it_forms_is_refused_and_kept_nowhere(vit, gray, own_cache):
    viewer = Visualizer(vit, SHORT, gray)
    frames = viewer.stream(1, 7, every=5)
    next(frames)
    with zeroed(vit), pytest.raises(VitvizError, match="little-vit was changed .* while pictures of its mlp layer 1 formed"):
        list(frames)
    assert not list(own_cache.rglob("*.npz"))
    expected = Visualizer(vit, SHORT, gray, keep=False).render(1, 7)
    assert torch.equal(viewer.render(1, 7).pictures, expected.pictures)


def test_a_note_says_that_nothing_is_cached_and_why(vit, gray, own_cache):
    viewer = Visualizer(vit, Recipe(steps=1, copies=1), gray)
    assert viewer.note is None
    with hooked(vit):
        viewer.render(1, 7)
        assert viewer.note == ("Nothing is cached or taken from a cache: little-vit has hooks or replaced functions that are not "
                               "this kit's, so what it computes cannot be known.")
    assert viewer.note is None and not list(own_cache.rglob("*.npz"))


def test_pictures_and_references_are_bit_equal_whatever_other_threads_do_with_the_model(vit, speckles):
    def measured(viewer: Visualizer) -> tuple[Rendering, Tensor]:
        rendering = viewer.render(1, NEURONS)
        return rendering, reference_activations(vit, find_site(vit, 1), viewer.reference).clone()

    images = torch.rand(64, 3, SIZE, SIZE)
    alone, alone_reference = measured(Visualizer(vit, RECIPE, images, keep=False))
    logits, stop, errors, passes = vit(speckles), threading.Event(), [], []

    def others(work: Callable) -> threading.Thread:
        def repeat():
            torch.set_num_threads(before)
            while not stop.is_set():
                try:
                    assert work()
                    passes.append(1)
                except BaseException as error:
                    errors.append(error)
                    return

        thread = threading.Thread(target=repeat)
        thread.start()
        return thread

    before = torch.get_num_threads()
    threads = [others(lambda: torch.equal(vit(speckles), logits)),
               others(lambda: torch.isfinite(activations(vit, "mlp", images)[0]).all())]
    try:
        vit._memory.clear()
        beside, beside_reference = measured(Visualizer(vit, RECIPE, images.clone(), keep=False))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == [] and len(passes) > 4
    assert torch.equal(beside.pictures, alone.pictures) and beside.scores == alone.scores
    assert torch.equal(beside_reference, alone_reference)


def test_the_picture_of_a_seed_is_the_one_the_atlas_and_published_numbers_were_made_with():
    model = vv.load("emoji-vit", device="cpu")
    images = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    picture = Visualizer(model, replace(Recipe.quick(model), steps=8), images, atlas=False).render(5, 376, seed=3)
    # Means of 16 px squares, measured before the optimizer was a function of its own; other machines round otherwise.
    wanted = torch.tensor([
        .2114, .7946, .8265, .3160, .2115, .7572, .8549, .6367, .1989, .3607, .7075, .5693, .2200, .3477, .5885, .1509,
        .5699, .3041, .4766, .4021, .5864, .5015, .4650, .5170, .6497, .5052, .5055, .5818, .7035, .6509, .6870, .6690,
        .3663, .5410, .7470, .6922, .4311, .7298, .7479, .6330, .4334, .6323, .5347, .4616, .3217, .4983, .6035, .2850])
    assert torch.allclose(avg_pool2d(picture.pictures[0], 16).flatten(), wanted, atol=2e-3)
    assert picture.curves.tolist() == [pytest.approx([-0.0649, 4.2828], abs=0.02)]


# What gives no picture


def without_gradient(model: VisionModel) -> None:
    model.module.forward = torch.no_grad()(model.module.forward)


def with_detach(model: VisionModel) -> None:
    forward = model.module.patch_embed.forward
    model.module.patch_embed.forward = lambda x: forward(x).detach()


def with_detach_in_training(model: VisionModel) -> None:
    with_detach(model)
    model.module.requires_grad_(True)  # the activation then has a gradient, though not for the image


@pytest.mark.parametrize("tv", [0.0, 0.1])
@pytest.mark.parametrize("cut", [without_gradient, with_detach, with_detach_in_training])
def test_a_network_without_a_gradient_is_refused(vit, gray, cut, tv):
    cut(vit)
    with pytest.raises(VitvizError, match="does not depend differentiably on the image: .*torch.no_grad, .*detach"):
        Visualizer(vit, Recipe(steps=2, copies=1, tv=tv), gray).render(1, 7)


def test_a_picture_in_inference_mode_is_the_same(vit, gray):
    expected = Visualizer(vit, SHORT, gray, keep=False).render(1, 7)
    with torch.inference_mode():
        viewer = Visualizer(vit, SHORT, gray, keep=False)
        next(viewer.stream(1, 7, every=5))
        assert torch.equal(viewer.render(1, 7).pictures, expected.pictures)


def test_weights_made_in_inference_mode_are_refused(gray):
    with torch.inference_mode():
        model = make_vit()
    with pytest.raises(VitvizError, match="little-vit was made in torch.inference_mode, .*load it outside"):
        Visualizer(model, SHORT, gray).render(1, 7)


def test_a_neuron_whose_gradient_is_zero_is_no_error(planted, gray):
    assert Visualizer(planted, Recipe(steps=2, copies=1), gray).render(0, DEAD).scores.status == ["dead"]


def test_weights_that_became_nan_are_named(vit, gray):
    viewer = Visualizer(vit, Recipe(steps=2, copies=1), gray)
    viewer.render(1, 7)
    vit.module.blocks[1].mlp.fc1.bias.data[7] = float("nan")
    with pytest.raises(VitvizError, match="weights of little-vit contain NaN .*blocks.1.mlp.fc1.bias"):
        viewer.render(1, 7)


def test_a_picture_that_becomes_nan_is_refused(planted, gray, own_cache):
    class Root(nn.Module):
        def forward(self, x):
            return F.relu(x) + (0 * F.leaky_relu(x)).sqrt()  # the gradient of whose second part is 0 * infinity

    model = VisionModel(deepcopy(planted.module), "root", SIZE)
    model.module.mlp.act = Root()
    with pytest.raises(VitvizError, match="A picture of mlp layer 0 of root became NaN or infinite after 2 steps"):
        Visualizer(model, Recipe(steps=2, copies=1, jitter=0), gray).render(0, DEAD)
    assert not list((own_cache / "renderings").rglob("*.npz"))


@pytest.mark.parametrize("changed", [lambda a: {"picture": a["picture"] * np.nan}, lambda a: {"picture": a["picture"] + 3},
                                     lambda a: {"picture": a["picture"].astype(str)}, lambda a: {"curve": a["curve"][1:]},
                                     lambda a: {"picture": a["picture"][:, 1:]}, lambda a: {"curve_steps": np.array(3)}])
def test_a_cached_picture_that_is_damaged_is_made_again(vit, gray, own_cache, changed):
    made = Visualizer(vit, Recipe(steps=2, copies=1), gray).render(1, 7)
    (entry,) = (own_cache / "renderings").rglob("*.npz")
    with np.load(entry) as arrays:
        np.savez_compressed(entry, **{**arrays, **changed(arrays)})
    assert torch.equal(Visualizer(vit, Recipe(steps=2, copies=1), gray).render(1, 7).pictures, made.pictures)


# Addresses, frames, families


def test_neurons_may_be_a_number_or_several(vit, gray):
    viewer = Visualizer(vit, Recipe(steps=1, copies=1), gray)
    for neurons, meant in [(3, [3]), (range(2), [0, 1]), ([5, 2], [5, 2]), (np.array([4, 9]), [4, 9]), ((n for n in (6,)), [6]),
                           (torch.tensor(8), [8]), (torch.tensor([8, 1]), [8, 1]), (np.int64(3), [3])]:
        rendering = viewer.render(np.int64(-1), neurons, seed=np.int64(0))
        assert rendering.neurons == meant and len(rendering.pictures) == len(meant)
        assert rendering.layer == 1 and rendering.kind == "mlp"


@pytest.mark.parametrize(("arguments", "said"), [
    ({"layer": 2, "neurons": 0}, "little-vit has no mlp layer 2; its layers are 0 to 1"),
    ({"layer": 0, "neurons": 128}, "neurons 0 to 127; neuron 128 is out of range"),
    ({"layer": 0, "neurons": -1}, "neuron -1 is out of range"),
    ({"layer": 0, "neurons": []}, "none was named"),
    ({"layer": 0, "neurons": [1, 1]}, "the same neuron twice"),
    ({"layer": 0, "neurons": 0, "kind": "channel"}, "no sites of kind 'channel'; it has mlp, "),
    ({"layer": "0", "neurons": 0}, "no layer at '0'; a layer is a number"),
    ({"layer": 0, "neurons": "7"}, "neurons 0 to 127"),
    ({"layer": 0, "neurons": torch.tensor([0.5])}, "Directions are floats of shape .K, 128."),
    ({"layer": 0, "neurons": 0, "seed": -1}, "A seed is a whole number from 0"),
    ({"layer": 0, "neurons": range(10**9)}, "neurons 0 to 127"),
])
def test_address_the_model_lacks_is_an_error_that_says_what_there_is(vit, gray, arguments, said):
    with pytest.raises(VitvizError, match=said):
        Visualizer(vit, RECIPE, gray).render(**arguments)


@pytest.mark.parametrize("every", [0, 1.5])
def test_a_stream_of_no_frames_is_refused(vit, gray, every):
    with pytest.raises(VitvizError, match="every is a whole number from 1"):
        Visualizer(vit, RECIPE, gray).stream(-1, 0, every=every)


@pytest.mark.parametrize("arguments", [{"model": nn.Linear(1, 1)}, {"recipe": "quick"}])
def test_a_visualizer_takes_a_model_and_a_recipe(vit, arguments):
    with pytest.raises(VitvizError, match=r"takes a model, from vv.load\(name\) or vv.wrap\(module\), and a Recipe"):
        Visualizer(**{"model": vit} | arguments)


def test_stream_shows_pictures_as_they_form_and_finished_ones_before_it_scores_them(fresh, together):
    frames = list(fresh().stream(-1, NEURONS, every=15))
    assert [frame.steps[0] for frame in frames] == [15, 30, 40, 40]
    assert [frame.scores is not None for frame in frames] == [False, False, False, True]
    assert [frame.finished for frame in frames] == [False, False, True, True]
    assert torch.equal(frames[2].pictures, frames[3].pictures)
    assert (frames[0].pictures - frames[1].pictures).abs().max() > 0.01
    assert all(0 <= frame.pictures.min() and frame.pictures.max() <= 1 for frame in frames)
    assert largest_difference(frames[-1], together) < TOLERANCE


_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
FAMILIES: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "coat": (lambda: coat.CoaT(img_size=64, patch_size=4, embed_dims=(32, 32, 32, 32), serial_depths=(1, 1, 1, 1),
                               parallel_depth=1, num_classes=5), "mlp", 64),
    "convit": (lambda: convit.ConVit(img_size=32, patch_size=8, embed_dim=8, num_heads=4, depth=3, local_up_to_layer=2,
                                     num_classes=5), "mlp", 32),
    "swin": (lambda: swin_transformer.SwinTransformer(img_size=32, patch_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4),
                                                      window_size=4, num_classes=5), "mlp", 32),
    "twins": (lambda: twins.Twins(img_size=32, patch_size=4, embed_dims=(16, 16, 32, 32), num_heads=(2, 2, 2, 2),
                                  depths=(1, 1, 1, 1), wss=(4, 2, 2, 1), num_classes=5), "mlp", 32),
    "pit": (lambda: pit.PoolingVisionTransformer(img_size=32, patch_size=8, stride=4, base_dims=(8, 8, 8), depth=(1, 1, 1),
                                                 heads=(2, 4, 4), num_classes=5, distilled=True), "mlp", 32),
    "deit, distilled": (lambda: deit.VisionTransformerDistilled(**_VIT), "mlp", 32),
    "clip": (lambda: timm.create_model("vit_base_patch32_clip_quickgelu_224", **_VIT), "mlp", 32),
    "resnet": (lambda: resnet.ResNet(resnet.BasicBlock, (1, 1, 1, 1), num_classes=5), "channel", 32),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_rendered(family):
    torch.manual_seed(5)
    build, kind, size = FAMILIES[family]
    model = VisionModel(build(), family, size)
    viewer = Visualizer(model, Recipe(steps=2, copies=2), torch.rand(3, 3, size, size))
    for layer in (0, -1):
        rendering = viewer.render(layer, [0, 5], kind)
        assert rendering.pictures.shape == (2, 3, size, size) and rendering.finished and hooks(model) == 0
        moved = (rendering.pictures - noise(viewer.recipe, kind, rendering.layer, [0, 5], size)).abs()
        assert (moved.mean((1, 2, 3)) > 0.02).all(), "the gradient reaches the picture"
        assert rendering.pictures.isfinite().all() and np.isfinite(rendering.scores.activation).all()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_optimized_in_bfloat16_nearly_as_in_float32(family, monkeypatch):
    torch.manual_seed(5)
    build, kind, size = FAMILIES[family]
    model, made = VisionModel(build(), family, size), {}
    for precision in (torch.float32, torch.bfloat16):  # as on a card
        monkeypatch.setattr(hardware, "ascent_precision", lambda device, precision=precision: precision)
        made[precision] = Visualizer(model, Recipe(steps=4, copies=2), keep=False).optimize(-1, [0, 5], kind)
        assert hooks(model) == 0 and next(model.module.parameters()).dtype is torch.float32
    full, half = made.values()
    moved = (full.pictures - full.pictures.roll(1, 0)).abs().mean()
    assert (full.pictures - half.pictures).abs().mean() < 0.05 * moved
    assert torch.equal(full.curves[:, 0], half.curves[:, 0])  # what is reported is always measured in float32


@pytest.mark.parametrize("family", ["clip", "swin", "coat", "resnet"])
def test_pictures_are_those_of_copies_made_whole_and_layers_computed_whole(family, monkeypatch):
    torch.manual_seed(5)
    build, kind, size = FAMILIES[family]
    model, neurons = VisionModel(build(), family, size), [0, 5]
    made = Visualizer(model, Recipe(steps=3, copies=2), keep=False).optimize(-1, neurons, kind)
    calls = []

    def whole(model, place, inputs, leak=0.0):
        calls.append(len(inputs))
        every = tokens(model, replace(place, own=None), inputs + 0, leak)  # + 0 makes the copies
        return every.gather(2, place.own[:, None, None].expand(-1, every.shape[1], 1))

    monkeypatch.setattr(visualizer_module, "tokens", whole)
    expected = Visualizer(model, Recipe(steps=3, copies=2), keep=False).optimize(-1, neurons, kind)
    assert calls == [2, 4, 4, 4, 2]  # a curve's first point, three steps of two copies, and its last
    assert (made.pictures - expected.pictures).abs().max() < TOLERANCE
    assert torch.allclose(made.curves, expected.curves, rtol=1e-4, atol=1e-5)


# Fourier-parameterized pictures

FOURIER = replace(Recipe.fourier(), steps=12, canvas=1.5)


@pytest.fixture
def fourier(fresh: Callable[..., Visualizer]) -> Callable[[], Visualizer]:
    return partial(fresh, FOURIER)


def test_a_planted_color_is_found_by_the_fourier_recipe(planted, gray):
    recipe = replace(Recipe.fourier(), steps=60, lr=0.5)  # colors that photographs hardly have take long
    rendering = Visualizer(planted, recipe, gray).render(0, RED)
    red, green, blue = rendering.pictures[0].mean((1, 2))
    assert rendering.pictures.shape == (1, 3, 55, 55) and red > 0.65 and max(green, blue) < 0.35
    assert rendering.scores.percentile == [100]


def test_a_fourier_picture_is_the_same_alone_in_chunks_and_from_the_cache(fourier, vit, gray, passes, monkeypatch):
    together = fourier().render(-1, NEURONS)
    assert passes == [10] * 12 and together.pictures.shape == (5, 3, 48, 48) and together.finished
    assert len({picture.numpy().tobytes() for picture in together.pictures}) == 5
    again = Visualizer(vit, FOURIER, gray).render(-1, NEURONS)
    assert len(passes) == 12 and largest_difference(again, together) < 1e-6  # from the cache
    assert (fourier().render(-1, NEURONS[3]).pictures[0] - together.pictures[3]).abs().max() < TOLERANCE
    monkeypatch.setitem(hardware.VIEWS, "cpu", 4)
    assert largest_difference(fourier().render(-1, NEURONS), together) < TOLERANCE


@pytest.mark.parametrize("call", [1, 7])
def test_an_interrupted_fourier_picture_is_shown_and_goes_on(fourier, fail_at, passes, call):
    together, done = fourier().render(-1, NEURONS), len(passes)
    viewer = fourier()
    fail_at(call, KeyboardInterrupt())
    partial = viewer.render(-1, NEURONS)
    assert partial.steps == [call - 1] * 5 and not partial.finished and partial.scores.activation
    assert largest_difference(viewer.render(-1, NEURONS), together) < TOLERANCE
    assert len(passes) == done + 12 + 1  # the interrupted pass was made again, nothing else


def test_a_fourier_picture_in_inference_mode_is_the_same(fourier, vit, gray):
    expected = fourier().render(1, 7)
    with torch.inference_mode():
        assert torch.equal(Visualizer(vit, FOURIER, gray, keep=False).render(1, 7).pictures, expected.pictures)


def test_a_picture_larger_than_the_input_is_scored_and_followed_as_the_network_sees_it_resized(fourier, vit):
    rendering = fourier().render(1, [3, 50])
    seen = F.interpolate(rendering.pictures, size=(SIZE, SIZE), mode="bilinear", antialias=True)
    expected = activations(vit, "mlp", seen)[1][[0, 1], [3, 50]]
    assert rendering.scores.activation == pytest.approx(expected.tolist(), abs=1e-4)
    assert torch.allclose(rendering.curves[:, -1], expected, atol=1e-4)


@pytest.mark.parametrize("change", [{"power": 1.2}, {"canvas": 1.25}, {"crops": (0.5, 0.95)}, {"grain": 0.1}])
def test_each_setting_of_a_fourier_recipe_is_part_of_the_cache_key(vit, gray, passes, change):
    Visualizer(vit, replace(FOURIER, steps=1), gray).render(1, 7)
    Visualizer(vit, replace(FOURIER, steps=1, **change), gray).render(1, 7)
    assert len(passes) == 2


# Directions, and several pictures of one neuron


def test_a_direction_of_one_neuron_is_activated_and_scored_as_that_neuron(vit, speckles):
    viewer, one = Visualizer(vit, RECIPE, speckles), torch.zeros(1, 128)
    one[0, 31] = 1
    neuron, direction = viewer.render(1, 31), viewer.render(1, one)
    assert direction.scores.activation == pytest.approx(neuron.scores.activation, rel=0.2)  # from another random stream
    again = viewer.score(replace(direction, pictures=neuron.pictures)).scores
    assert again.activation == pytest.approx(neuron.scores.activation, abs=1e-4)
    assert (again.percentile, again.rank, again.status) == (neuron.scores.percentile, neuron.scores.rank, neuron.scores.status)


def test_a_direction_is_maximized_and_scored_as_the_weighted_sum_of_its_neurons(vit, speckles):
    weights = torch.zeros(2, 128)
    weights[0, [3, 50]], weights[1, [7, 9]] = 1.0, torch.tensor([2.0, -2.0])
    viewer = Visualizer(vit, Recipe(steps=STEPS, copies=2, tv=0, color=0, jitter=0), speckles)
    rendering = viewer.render(1, weights)
    sums = (activations(vit, "mlp", rendering.pictures)[1] * weights).sum(1)
    assert rendering.scores.activation == pytest.approx(sums.tolist(), abs=1e-3)
    assert torch.allclose(rendering.curves[:, -1], sums, atol=1e-3) and (sums > rendering.curves[:, 0] + 1).all()
    known = activations(vit, "mlp", speckles)[1] @ weights.T
    assert rendering.scores.percentile == pytest.approx((100 * (known < sums).float().mean(0)).tolist())
    assert viewer.render(1, 2 * weights[:1]).neurons != rendering.neurons[:1] != rendering.neurons[1:]
    assert rendering.caption(0)[0].startswith("direction ") and torch.equal(rendering.directions, weights)


def test_a_direction_is_the_same_alone_batched_from_the_cache_and_saved(vit, gray, passes, tmp_path):
    weights = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    together = Visualizer(vit, SHORT, gray).render(1, weights)
    done = len(passes)
    again = Visualizer(vit, SHORT, gray).render(1, weights.numpy())
    assert torch.equal(again.pictures, together.pictures) and len(passes) == done
    alone = Visualizer(vit, SHORT, gray, keep=False).render(1, weights[1:2])
    assert (alone.pictures[0] - together.pictures[1]).abs().max() < TOLERANCE and alone.neurons == together.neurons[1:2]
    loaded = Rendering.load(together.save(tmp_path / "saved"))
    assert torch.equal(loaded.directions, weights) and loaded.labels == together.labels and loaded.scores == together.scores


@pytest.mark.parametrize(("weights", "said"), [
    (torch.ones(1, 127), r"Directions are floats of shape \(K, 128\)"), (torch.ones(128), r"shape \(K, 128\)"),
    (torch.ones(0, 128), r"shape \(K, 128\)"), (torch.zeros(1, 128), "at least one of them is not 0"),
    (torch.full((1, 128), math.nan), "are finite"), (torch.ones(2, 128), "same direction is named twice")])
def test_what_is_no_direction_is_refused(vit, gray, weights, said):
    with pytest.raises(VitvizError, match=said):
        Visualizer(vit, SHORT, gray).render(1, weights)


def test_variants_are_the_pictures_of_the_seeds_that_follow(vit, gray, passes, tmp_path):
    viewer = Visualizer(vit, SHORT, gray)
    rendering = viewer.render(1, [7, 9], seed=4, variants=3)
    assert rendering.neurons == [7, 7, 7, 9, 9, 9] and passes == [6] * 10 and len(rendering.scores.rank) == 6
    assert [rendering.caption(k)[0] for k in (0, 5)] == ["neuron 7, variant 1", "neuron 9, variant 3"]
    for variant in range(3):
        own = viewer.render(1, [7, 9], seed=4 + variant)
        assert torch.equal(own.pictures, rendering.pictures[variant::3])
    assert len(passes) == 10  # from the cache
    assert len({picture.numpy().tobytes() for picture in rendering.pictures}) == 6
    folder = rendering.save(tmp_path / "saved")
    assert len(list(folder.glob("neuron_*.png"))) == 6 and rendering.save(folder) == folder
    with pytest.raises(VitvizError, match="variants is a whole number from 1"):
        viewer.render(1, 7, variants=0)


def test_an_interrupted_variant_goes_on(fresh, fail_at, passes):
    viewer = fresh()
    fail_at(17, KeyboardInterrupt())
    assert viewer.render(-1, 7, variants=2).steps == [16, 16]
    assert viewer.render(-1, 7, variants=2).finished and len(passes) == STEPS + 1
