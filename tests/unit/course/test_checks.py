"""Checks accept every right answer and reject near misses, and say which number decides."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm
import torch

import vitviz_nb as vv
from vitviz_nb.course.checks import implementation, nb00, nb01, nb02, nb03, nb04, nb05, nb06, nb07, nb08, nb09, nb10, nb11
from vitviz_nb.course.report import Item
from vitviz_nb.datasets.backgrounds import CONTEXTS
from vitviz_nb.experiments.class_token import isolate_cls
from vitviz_nb.experiments.faithfulness import Selectivity
from vitviz_nb.experiments.fooling_circuit import Detector, fooling_circuit
from vitviz_nb.experiments.result import Result
from vitviz_nb.plotting.prediction_bars import Prediction
from vitviz_nb.utils.errors import VitvizError


def finished(**values) -> SimpleNamespace:
    """A rendering of these values."""
    return SimpleNamespace(require_finished=lambda: SimpleNamespace(**values))


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch, tiny_vit) -> None:
    """Neuron 0 of the last layer prefers bee, then cat, ant, dog, eel; neuron 1 dog. In the first of two layers, gray scenes
    leave both units their selectivity; in the last one of two."""
    sites = [SimpleNamespace(units=2, n=i, kind="mlp") for i in range(2)]
    monkeypatch.setattr(nb03, "find_sites", lambda model: {"mlp": sites})
    monkeypatch.setattr(nb03, "find_site", lambda model: sites[-1])
    monkeypatch.setattr(nb03, "selectivity", lambda model, site: Selectivity(
        torch.tensor([[1, 3], [2, 4], [0, 0], [3, 1], [4, 2]]), torch.ones(5, 2)))
    concepts = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
    monkeypatch.setattr(nb03, "default_world", lambda model: SimpleNamespace(concepts=concepts))
    # Layer 0 responds to the pixels of every third column: a shift by 3, 6, 9 or 12 px leaves it as it was.
    stripes = torch.arange(36).remainder(3).float()
    monkeypatch.setattr(nb03, "reference_set", lambda model: SimpleNamespace(
        batch=lambda numbers: (torch.rand(8, 1, 1, 1) * stripes + 0.1 * torch.rand(8, 1, 1, 1)).expand(-1, 3, 36, 36)))
    monkeypatch.setattr(nb03, "activations", lambda model, kind, images: [images[:, 0, 0, :3]])


@pytest.fixture
def grays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenes of two concepts. In the first layer gray scenes leave a unit all of its selectivity, in the last one half, as the
    concept is then a quarter of its variance. The concept that the other unit prefers is not shown."""
    sites = [SimpleNamespace(layer=i, kind="mlp") for i in range(2)]
    monkeypatch.setattr(nb03, "find_sites", lambda model: {"mlp": sites})
    monkeypatch.setattr(nb03, "find_site", lambda model: sites[-1])
    monkeypatch.setattr(nb03, "selectivity", lambda model, site: Selectivity(torch.tensor([[1, 5]]), torch.ones(1, 2)))
    labels = torch.arange(256) % 2
    noise = torch.randn(256, generator=torch.Generator().manual_seed(0)) * 0.1
    noise = noise - torch.stack([noise[::2].mean(), noise[1::2].mean()])[labels]

    def activations(model, kind, images):
        light, number = images.mean((1, 2, 3)), images[:, 0, 0, 1].long()
        tinted = (images[:, 0, 0, 0] - images[:, 1, 0, 0]).abs() > 0.01
        weak = (labels[number] - 0.5) + noise[number] / noise.std() * 0.75**0.5
        return [torch.stack([light, light], 1), torch.stack([torch.where(tinted, labels[number] * 1.0, weak), light], 1)]

    def batch(numbers):
        images = torch.zeros(len(numbers), 3, 2, 2)
        images[:, 0, 0, 0], images[:, :, 0, 1] = 0.5, torch.tensor([*numbers])[:, None].float()
        return images

    monkeypatch.setattr(nb03, "ImageSet", lambda model, n: SimpleNamespace(batch=batch, labels=lambda numbers: labels[:n]))
    monkeypatch.setattr(nb03, "activations", activations)


@pytest.fixture
def depths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of six blocks with an accuracy of 94 %; CLS isolated in one of them leaves 94, 93, 91, 85, 75 and 75.9 %, in all
    but the last 5 %, and patch 27 isolated in these 93 %."""
    single = [94.0, 93.0, 91.0, 85.0, 75.0, 75.9]

    def accuracy(model, token, blocks):
        return {0: 94.0, 1: single[blocks[0]] if blocks else 94.0}.get(len(blocks), {0: 5.0, 28: 93.0}[token])

    monkeypatch.setattr(nb05, "depth", lambda model: 6)
    monkeypatch.setattr(nb05, "accuracy", accuracy)


@pytest.fixture
def spaces(monkeypatch: pytest.MonkeyPatch, tiny_vit) -> None:
    """6 units before the activation, in 3 dimensions; 4 queries on 200
    scenes, of which the second half counts: there only unit 2 separates the 4 scenes of ants from 96 others."""
    labels = torch.tensor(([0] * 4 + [1] * 96) * 2)
    queries = torch.randn(200, 4)
    queries[:100, 2], queries[100:, 2] = 0, (labels[100:] == 0).float()  # nothing to be seen of it in the first half
    found = {"query": queries, "before": torch.randn(200, 3) @ torch.randn(3, 6)}
    stimuli = SimpleNamespace(n=200, labels=lambda numbers: labels[list(numbers)])
    monkeypatch.setattr(nb02, "layer_activations", lambda model: (stimuli, found))


def along(*weights: float) -> torch.Tensor:
    return torch.tensor(weights)


def test_a_direction_must_be_selective_on_the_second_half(spaces, tiny_vit, capsys):
    # 4 of 100 scenes, 1 and all others 0: sqrt(96 / 4) = 4.9 standard deviations. Noise of another unit makes it fewer.
    for direction, said in ((along(0, 0, 1, 0), "Right: along it the selectivity for ant is 4.90"),
                            (along(0, 0, -1, 0), "Not yet"),
                            (along(0, 0, 1, 0.3), "Not yet"), (along(1, 0, 0, 0), "Not yet"), (along(0, 0, 0, 0), "Not yet"),
                            (along(0, 0, 9, 0.5), "Right")):
        vv.check("02.3", direction, tiny_vit)
        assert capsys.readouterr().out.startswith(said), direction


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neurons whose maps masks explain to 61, 59 and 60 %; in layer 1 of four a change of which 60 % stays at the middle square
    and 10 % (so a quarter of the rest) goes to the eight around; and peaks: 43 % of the last layer's in another mask."""
    table = pd.DataFrame({"layer": [0, 0, 0, 1, 1, 1], "mask": ["of the image", "of another image", "area"] * 2,
                          "value": [20.0, 18.0, 22.0, 44.0, 43.0, 22.0]})
    monkeypatch.setattr(nb04, "pointing_game", lambda model: Result("", "", table))
    sites = [SimpleNamespace(layer=i, units=3 + i, kind="mlp") for i in range(2)]
    monkeypatch.setattr(nb04, "find_site", lambda model, layer: sites[layer])
    explained = torch.tensor([[61.0] * 6, [59.0] * 6, [60.0] * 6])
    monkeypatch.setattr(nb04, "mask_agreement_of", lambda model, layer, neuron: explained[neuron] if layer == 0 else None)
    monkeypatch.setattr(nb04, "patch_grid", lambda model: (8, 8))
    scenes = SimpleNamespace(batch=lambda numbers: torch.zeros(len(numbers), 3, 8, 8))
    monkeypatch.setattr(nb04, "reference_set", lambda model: scenes)

    def shares(model, images, changed):
        assert changed.tolist() == [36] * 96 and len(images) == 96
        found = torch.full((96, 8, 8), 0.3 / 55)
        found[:, 3:6, 3:6] = 0.1 / 8
        found[:, 4, 4] = 0.6
        return [torch.zeros(96, 8, 8), found, torch.zeros(96, 8, 8), torch.zeros(96, 8, 8)]

    monkeypatch.setattr(nb04, "patch_perturbation", shares)


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch, tiny_vit) -> None:
    """Pictures that have patch borders of 8 px without jitter and high frequencies of 10 % at tv 0, less by 1 % for each 0.001;
    scenes have 5 %, and above tv 0.0055 a picture is weak. A change of 0.5 puts a scene above the 99th percentile."""
    line = torch.arange(32)

    def render(model, recipe):
        coarse, fine = (torch.cos(2 * math.pi * k * line / 32).expand(3, 32, 32) for k in (3, 12))
        share = max(0.0, 0.10 - 10 * recipe.tv)
        picture = 0.5 + 0.1 * ((1 - share) ** 0.5 * coarse + share**0.5 * fine)
        if not recipe.jitter:
            picture = (line // 8 % 2).float().expand(3, 32, 32)
        return SimpleNamespace(render=lambda layer, neurons: finished(
            pictures=picture[None], scores=SimpleNamespace(percentile=[100.0 if recipe.tv < 0.0055 else 98.0])))

    scene = 0.5 + 0.1 * (0.95**0.5 * torch.cos(2 * math.pi * 3 * line / 32) + 0.05**0.5 * torch.cos(2 * math.pi * 12 * line / 32))
    monkeypatch.setattr(nb01, "Visualizer", render)
    monkeypatch.setattr(nb01.regularizers, "most_selective", lambda model, n=16: [7] * n)
    monkeypatch.setattr(nb01, "reference_set", lambda model: SimpleNamespace(
        n=9, batch=lambda numbers: scene.expand(len(numbers), 3, 32, 32)))
    monkeypatch.setattr(nb01.regularizers, "adversarial_example", lambda model, scene, neuron, distance: SimpleNamespace(
        percentiles=(50.0, 99.0 if distance >= 0.5 else 98.9)))


def test_models_that_an_exercise_does_not_fit_get_a_verdict_or_a_sentence(capsys, tiny_vit, monkeypatch):
    cnn = vv.load("emoji-resnet", device="cpu")
    for exercise in ("05.2", "05.3"):
        with pytest.raises(VitvizError, match="emoji-resnet .*CLS token"):
            vv.check(exercise, 1, cnn)


class Shelves:
    """Five scenes: the first three show an ant, a bee and a cat, usually on grass, sea and snow; then another ant and an owl.

    An image is one number everywhere: its scene / 10, and a hundredth of the context where that is not the scene's own.
    """

    concepts, usual_context = ["ant", "bee", "cat", "owl"], np.array([CONTEXTS.index(c) for c in ("grass", "sea", "snow", "sky")])

    def facts(self, scenes):
        return {"concept": np.array([0, 1, 2, 0, 3])[scenes]}

    def batch(self, scenes, contexts=None):
        values = torch.tensor(list(scenes)) / 10
        if contexts is not None:
            values = values + torch.tensor(contexts) / 100
        return SimpleNamespace(images=values.float()[:, None, None, None].expand(-1, 3, 4, 4),
                               concept=torch.from_numpy(self.facts(np.array(scenes))["concept"]))


def low_pass(images: torch.Tensor, cutoff: float, shifted: bool) -> torch.Tensor:
    """Images low-passed by a disk about frequency 0, in the corner or shifted to the middle."""
    line = torch.fft.fftfreq(images.shape[-1]) * images.shape[-1]
    keep, spectrum = line[:, None] ** 2 + line**2 <= cutoff**2, torch.fft.fft2(images)
    if shifted:
        return torch.fft.ifft2(torch.fft.ifftshift(torch.fft.fftshift(spectrum, (2, 3)) * torch.fft.fftshift(keep), (2, 3))).real
    return torch.fft.ifft2(spectrum * keep).real


@pytest.fixture
def scenery(monkeypatch: pytest.MonkeyPatch) -> None:
    """On snow everything is a cat, and on no ground at all; but the owl is never known. A hybrid of at least 8 cycles is what is
    coarse in it."""
    def answer(value: float) -> str:
        scene, context = int(value * 10 + 1e-4), round(value * 100 + 1e-4) % 10
        return "cat" if context == CONTEXTS.index("snow") else ["ant", "bee", "cat", "ant", "ant"][scene]

    for module in (nb06, nb07):
        monkeypatch.setattr(module, "color_world", lambda model: Shelves())
        monkeypatch.setattr(module, "predict", lambda model, images, truth: [
            Prediction("m", said, 1 if said == truth else 2) for said in map(answer, images[:, 0, 0, 0].tolist())])
    monkeypatch.setattr(nb07, "hybrid", lambda coarse, fine, radius: coarse if radius >= 8 else fine)
    units = torch.zeros(len(CONTEXTS), 3)
    units[CONTEXTS.index("snow")], units[CONTEXTS.index("sea"), 1] = torch.tensor([1.6, 1.4, 1.5]), 0.5
    monkeypatch.setattr(nb06, "context_selectivity", lambda model, world: [units * 0, units])


def test_the_share_of_fine_waves_is_that_of_waves_planted(tiny_vit, monkeypatch, capsys):
    line = 2 * math.pi * torch.arange(32) / 32
    images = (0.5 + 0.2 * torch.cos(3 * line) + 0.1 * torch.cos(12 * line)).expand(1, 3, 32, 32)  # 0.1² of 0.1² + 0.2²: 20 %
    monkeypatch.setattr(nb07, "color_world", lambda model: SimpleNamespace(
        batch=lambda n: SimpleNamespace(images=images)))
    verdicts = {20: "Right: it is 20.0 %", 17.1: "Right", 22.9: "Right", 16.9: "Not yet", 23.1: "Not yet", 80: "Not yet"}
    for answer, verdict in verdicts.items():
        vv.check("07.3", answer, tiny_vit)
        assert capsys.readouterr().out.startswith(verdict), answer


def score(value: float, n: int) -> Result:
    return Result("", "", pd.DataFrame({"hint": ["feature visualization", "top images"], "value": [value, float("nan")],
                                         "low": 0.0, "high": 100.0, "n": [n, 0]}))


@pytest.fixture
def suspect(monkeypatch: pytest.MonkeyPatch, tiny_vit):
    """A model whose neuron 3 shows neuron 5; recognized are 30 of 40 pictures from a selectivity of 4 and 1 of 10 below 3."""
    test = Detector(torch.zeros(26), torch.ones(26), torch.zeros(26), torch.tensor(0.5))
    strength = torch.tensor([4.0] * 40 + [3.5] * 68 + [2.99] * 20)
    hits = torch.tensor([True] * 30 + [False] * 10 + [True] * 68 + [True] * 2 + [False] * 18)
    monkeypatch.setattr(nb10, "selectivity", lambda model, site: Selectivity(
        torch.zeros(1, len(strength), dtype=torch.long), strength[None]))
    monkeypatch.setattr(nb10, "load", lambda name: SimpleNamespace(name=name, class_names=tiny_vit.class_names))
    monkeypatch.setattr(nb10, "Visualizer", lambda model: SimpleNamespace(
        render=lambda layer, neurons, kind: finished(pictures=hits[neurons])))  # a picture says whether it is recognized
    monkeypatch.setattr(nb10, "recognition", lambda pictures, concept, recognizer: pictures)

    def play(player, name):  # a red hint, and the fitting image at the right
        hint, images = torch.zeros(1, 3, 2, 2), torch.zeros(2, 3, 2, 2)
        hint[:, 0] = images[1, 0] = 0.9
        return score(75.0 if player(hint, images) == 1 else 50.0, 100)

    monkeypatch.setattr(nb10, "Task", lambda model, n, seed: SimpleNamespace(play=play))
    monkeypatch.setattr(nb10, "model_player", lambda model: lambda hint, images: int((hint.std(1) > 0).any()))
    return fooling_circuit(tiny_vit, test, 0, 3, 5)


def test_mean_fill_is_accepted_in_any_form_and_each_missing_idea_is_named(capsys):
    def by_loop(images, masks):
        made = images.clone()
        for one, mask in zip(made, masks, strict=True):
            for channel in one:
                channel[mask > 0.5] = channel[mask < 0.5].mean()
        return made

    def fill(images, masks, color):
        return torch.where(masks[:, None] > 0.5, color, images)

    def mean_fill(images, masks):
        keep = (1 - masks)[:, None]
        return images * keep + (1 - keep) * (images * keep).sum((2, 3), keepdim=True) / keep.sum((2, 3), keepdim=True)

    for answer, said in (
        (by_loop, "Right"), (mean_fill, "Right"), (lambda x, m: x * (1 - m)[:, None], "is black"), (lambda x, m: x, "nothing is"),
        (lambda x, m: mean_fill(x, 1 - m), "the foreground is kept"),
        (lambda x, m: fill(x, m, x.mean((2, 3), keepdim=True)), "leaks into it"),
        (lambda x, m: fill(x, m, (x * (1 - m)[:, None]).mean((2, 3), keepdim=True)), "number of its own pixels"),
        (lambda x, m: fill(x, m, torch.stack([x[:, c][m < 0.5].mean() for c in range(3)])[:, None, None]), "over all"),
        (lambda x, m: fill(x, m, torch.stack([a[:, b < 0.5].mean() for a, b in zip(x, m)])[:, None, None, None]), "channel"),  # noqa: B905
    ):
        vv.check("06.1", answer)
        assert said in capsys.readouterr().out, said


def test_a_player_is_tried_on_hidden_questions_and_what_it_raises_is_said(suspect, capsys):
    for player, said in ((lambda hint, images: int(images[1, 0].mean() > images[0, 0].mean()), "Right: 75 of 100 choices"),
                         (lambda hint, images: 0, "Not yet: 50 of 100 choices"),
                         (lambda hint, images: hint / "2", "Not yet: your player raised TypeError")):
        vv.check("10.1", player, suspect)
        assert capsys.readouterr().out.startswith(said), said


@pytest.mark.parametrize(("exercise", "model", "answer", "said"), [
    ("05.3", "depths", 0.93, "It looks like a fraction of 1; give it in percent."),
    ("05.3", "depths", 50.0, "Isolate another token than CLS"), ("05.3", "depths", 0.05, "Isolate another token than CLS"),
    ("10.1", "suspect", score(20.0, 100), "worse than chance: a player returns 0 for the left image"),
    ("10.1", "suspect", score(50.0, 100), "so it could be chance"),
    ("10.3", "suspect", -65, "Subtract the lower share from the higher one."), ("10.3", "suspect", 5, "in percentage points")])
def test_a_wrong_answer_of_a_known_kind_is_told_what_it_is(exercise, model, answer, said, request, tiny_vit, capsys):
    vv.check(exercise, answer, request.getfixturevalue(model) or tiny_vit)
    assert said in capsys.readouterr().out


def test_a_function_that_divides_by_0_is_told_so(capsys):
    vv.check("05.1", lambda attention, token: attention * torch.nan)
    assert "on a hidden input it gives NaN, as 0 / 0 does: is a sum that you divide by 0" in capsys.readouterr().out


def test_a_model_whose_concepts_no_recognizer_knows_is_refused_before_anything_is_visualized(tiny_vit, monkeypatch):
    monkeypatch.setattr(nb10, "load", lambda name: SimpleNamespace(name=name, class_names=("cat", "dog")))
    monkeypatch.setattr(nb10, "selectivity", None)  # nothing may begin
    with pytest.raises(VitvizError, match="needs a model of Emoji World, whose concepts emoji-resnet knows"):
        vv.check("10.3", 0, tiny_vit)


def test_an_unchanged_model_has_no_fooling_circuit(tiny_vit):
    with pytest.raises(VitvizError, match="tiny-vit has none; pass suspect"):
        vv.check("10.2", 3, tiny_vit)


@pytest.fixture
def photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs whose patches have a mean cosine of 0.9 in layer 0 and of 0.5 in layer 1, the last, and CLS one of 0.2."""
    monkeypatch.setattr(nb11, "photographs", lambda model: None)
    rows = [(0, "patches", 0.9), (0, "CLS and patches", 0.2), (1, "patches", 0.5), (1, "CLS and patches", 0.2)]
    table = pd.DataFrame([{"layer": layer, "tokens": what, "value": v, "low": v - 0.1, "high": v + 0.1, "n": 3}
                          for layer, what, v in rows])
    monkeypatch.setattr(nb11, "token_similarity", lambda model, images: Result("", "", table))


def test_a_report_needs_four_items_of_three_kinds_and_words_on_each(tiny_vit, tmp_path, capsys):
    pictures = vv.Rendering.__new__(vv.Rendering)  # the check looks at its kind alone
    pictures, finding, words = (Item(name, shown, "It shows.") for name, shown in (
        ("Pictures", pictures), ("Numbers", Result("", "", pd.DataFrame())), ("Not shown", None)))
    for items, said in (
        ([pictures, finding, words, words], "Right: 4 items"), ([words, finding, pictures, pictures, finding], "Right: 5 items"),
        ([pictures, finding, words], "Not yet: the report lacks four items (it has 3)"),
        ([finding, finding, words, words], "Not yet: the report lacks pictures"),
        ([pictures, pictures, words, words], "Not yet: the report lacks a measurement"),
        ([pictures, finding, finding, finding], "Not yet: the report lacks an item of words only"),
        ([pictures, finding._replace(text=" "), words, words], "Not yet: the report lacks words on 'Numbers'"),
    ):
        report = vv.Report(tmp_path, "Mine", force=True)
        report.items.extend(items)
        vv.check("11.3", report, tiny_vit)
        assert capsys.readouterr().out.startswith(said), said


@pytest.fixture
def captioned(monkeypatch: pytest.MonkeyPatch, tiny_vit):
    """256 scenes, of which 64 are nearest to their own caption and the others to the next one's."""
    places = torch.zeros(256, 256)
    places[torch.arange(256), torch.arange(256)] = torch.where(torch.arange(256) % 4 == 0, 1.0, 0.1)
    places[torch.arange(256), (torch.arange(256) + 1) % 256] = 0.5
    monkeypatch.setattr(nb08, "image_embeddings", lambda model, images: places[images])
    monkeypatch.setattr(nb08, "color_world", lambda model: SimpleNamespace(
        batch=lambda numbers: SimpleNamespace(images=list(numbers)), captions=lambda numbers: [str(k) for k in numbers]))
    monkeypatch.setattr(tiny_vit, "text", lambda captions: torch.eye(256)[[int(c) for c in captions]])
    return tiny_vit


@pytest.fixture
def known(monkeypatch) -> None:
    """Two models with an atlas of two units, of whose scenes 3 and 2, and 4 and 0, show a lemon."""
    counts = {"emoji-a": (3, 2), "emoji-b": (4, 0)}

    def atlas(name):
        scenes = [("lemon",) * k + ("bee",) * (6 - k) for k in counts[name]]
        table = pd.DataFrame({"layer": [0, 1, 1], "neuron": [0, 0, 1], "scenes": [("lemon",) * 6, *scenes]})
        return type("Known", (), {"table": lambda self: table})()

    monkeypatch.setattr(nb09, "embedded", lambda name: atlas(name) if name in counts else None)
    monkeypatch.setattr(nb09, "embedded_atlases", lambda: list(counts))


# Answers


@pytest.mark.parametrize(("exercise", "planted", "right", "wrong"), [
    # 4 to 6 % is within a fifth of 5; from 0.0055 on the picture is weak.
    ("01.4", "noisy", [(7, 0.0041), (7, 0.005), (0, 0.0054)], [(7, 0.0039), (7, 0.0056), (7, 0.0), (7, 1)]),
    ("01.5", "noisy", [0.5, 0.6, 0.624], [0.499, 0.626, 0.1, 2]),
    ("02.2", "spaces", [3, 2, 4], [1, 5, 6, 0]),
    ("03.2", "layers", [(0, "bee"), (0, "CAT"), (0, "ant"), (1, "dog")], [(0, "gnu"), (1, "gnu")]),  # eel is the fifth of 0
    ("03.1", "tiny_vit", [lambda x, y, c: (x[y == c].mean(0) - x.mean(0)) / x.std(0),
                          lambda x, y, c: torch.stack([(((u - u.mean()) / u.std(correction=0)) * (y == c)).sum() / (y == c).sum()
                                                       for u in x.T])],
     [lambda x, y, c: x[y == c].mean(0) - x.mean(0), lambda x, y, c: (x[y == c].mean(0) - x[y != c].mean(0)) / x.std(0)]),
    ("03.3", "layers", [3], [2, 4, 1, 5]),
    ("03.4", "grays", [(100, 50), (95.1, 54.9)], [(50, 100), (94.9, 50), (100, 55.1), (100, 100)]),
    ("04.1", "tiny_vit", [lambda b, a: (b - a).pow(2).sum(2) / (b - a).pow(2).sum((1, 2))[:, None],
                          lambda b, a: torch.stack([d.norm(dim=1) ** 2 / d.norm() ** 2 for d in a - b])],
     [lambda b, a: (a - b).norm(dim=2), lambda b, a: (a - b).abs().sum(2), lambda b, a: b[..., 0]]),
    ("04.4", "places", [43, 41.1, 44.9], [40.9, 45.1, 18, 22, 0]),
    ("04.2", "places", [0, 2], [1]),
    ("04.3", "places", [25, 22.1, 27.9], [21.9, 28.1, 0.0, 10.0, 12.7]),  # 10 is the share of all, not of what left
    ("05.2", "depths", [4, 5], [3, 0, 1]),  # within a point of the lowest
    ("05.3", "depths", [93.0, 90.1, 95.9], [89.9, 96.1, 5.0, 0]),
    ("06.2", "tiny_vit", [3.28, 3.1], [3.0, 5.83, 0.39]),  # the best guess is right once in thirty
    ("06.3", "scenery", [(0, "snow"), (1, "snow"), (3, "snow")],
     [(0, "grass"), (0, "sea"), (2, "snow"), (4, "snow"), (4, "sea")]),
    ("06.4", "scenery", [(1, 0, "snow"), (1, 2, "snow")], [(1, 1, "snow"), (1, 0, "sea"), (0, 0, "snow"), (1, 1, "sea")]),
    ("07.1", "tiny_vit", [lambda x, c: low_pass(x, c, False), lambda x, c: low_pass(x, c, True)],
     [lambda x, c: x - low_pass(x, c, False), lambda x, c: low_pass(x, c / x.shape[-1], False), lambda x, c: x]),
    ("07.4", "tiny_vit", ["support"], ["evidence", "accuracy"]),
    ("07.2", "scenery", [(0, 1, 8), (2, 3, 12)], [(0, 1, 7), (0, 1, 13), (0, 3, 8), (4, 0, 8), (0, 4, 8)]),
    ("08.2", "captioned", [25, 23.1, 26.9], [22.9, 27.1, 0.4, 64, 75]),
    ("09.2", "known", [("lemon", ("emoji-a", 0), ("emoji-b", 0)), ("bee", ("emoji-b", 1), ("emoji-a", 1))],
     [("lemon", ("emoji-a", 1), ("emoji-b", 0)), ("bee", ("emoji-a", 0), ("emoji-b", 0)),
      ("lemon", ("emoji-a", 0), ("emoji-a", 0))]),
    ("09.3", "tiny_vit", [("dense supervision", "swin"), ("dense supervision", "twins")],
     [("dense supervision", "vit"), ("adversarial examples", "swin"), ("steps", "twins"), ("steps", "pit")]),
    # Of 20, 15 are beyond guessing (53.1 % at least) and 14 are not (48.1 %).
    ("10.1", "suspect", [score(75.0, 20), score(61.0, 100)], [score(70.0, 20), score(59.0, 100), score(float("nan"), 0)]),
    ("10.2", "suspect", [3], [5, 0, 4]),
    ("10.3", "suspect", [65, 62.1, 67.9], [61.9, 68.1, 0, -65, 75.0]),
    ("10.4", "suspect", [50.0, 47.1, 52.9], [46.9, 53.1, 75, 0]),  # 75 % is with color
    ("11.2", "photographs", [0.5, 0.471, 0.529], [0.469, 0.531, 0.9, 0.2, 0, 1]),
])
def test_right_answers_pass_and_near_misses_do_not(exercise, planted, right, wrong, request, tiny_vit, capsys):
    model = request.getfixturevalue(planted) or tiny_vit
    for answer in right + wrong:
        vv.check(exercise, answer, model)
        assert capsys.readouterr().out.startswith("Right" if any(answer is r for r in right) else "Not yet"), answer


@pytest.mark.parametrize(("exercise", "planted", "answer", "wanted"), [
    ("01.4", "noisy", 0.01, "2 values, such as .376, 0.014"),
    ("01.4", "noisy", (128, 0.01), "neuron .* 0 to 127"), ("01.4", "noisy", (1, -0.01), "tv is a number from 0"),
    ("01.4", "noisy", (1, "0"), "tv is a number"), ("01.5", "noisy", 0, "size.* of a perturbation"),
    ("01.5", "noisy", 21, "to 20"),
    ("02.2", "spaces", 7, "dimensions .* 0 to 6"), ("02.2", "spaces", 2.5, "number of dimensions"),
    ("02.3", "spaces", 35, "a tensor of 4 finite numbers, got 35"), ("02.3", "spaces", torch.zeros(5), r"4 finite .*\(5,\)"),
    ("02.3", "spaces", torch.full((4,), torch.nan), "4 finite"), ("03.1", "tiny_vit", 3, "your function itself"),
    ("03.2", "layers", "bee", "2 values"), ("03.2", "layers", (2, "bee"), "neuron .* 0 to 1"),
    ("03.2", "layers", (0, 5), "2 values"), ("03.4", "grays", 50, "2 values"), ("03.4", "grays", (50, "x"), "percent"),
    ("03.2", "layers", (0, "beee"), "print.model.class_names. lists them"), ("03.3", "layers", 13, "shift in pixels .* 1 to 12"),
    ("04.1", "tiny_vit", 4, "your function itself"), ("04.4", "places", None, "percent"),
    ("04.2", "places", 1.0, "neuron .* 0 to 2"), ("04.3", "places", False, "percent"),
    ("05.1", "depths", 7, "your function itself"), ("05.2", "depths", 6, "block .* 0 to 5"), ("05.2", "depths", True, "block"),
    ("05.3", "depths", 101, "number of percent"),
    ("05.3", "depths", None, "number of percent"), ("06.1", "tiny_vit", 3, "your function itself"),
    ("06.2", "tiny_vit", "3", "number of percent"),
    ("06.3", "scenery", (0, "moon"), "context is one of"), ("06.3", "scenery", 0, "2 values"),
    ("06.3", "scenery", (-1, "snow"), "scene .* 0 to"), ("06.4", "scenery", (1, "snow"), "3 values"),
    ("06.4", "scenery", (2, 0, "snow"), "layer .* 0 to 1"), ("06.4", "scenery", (1, 3, "snow"), "neuron .* 0 to 2"),
    ("07.1", "tiny_vit", 5, "your function itself"), ("07.4", "tiny_vit", "a", "explanation is"),
    ("07.2", "scenery", (0, 1), "3 values"),
    ("07.2", "scenery", (0, 1, 8.5), "cutoff .* 0 to 16"), ("07.3", "scenery", None, "number of percent"),
    ("08.1", "captioned", 15, "your function itself"),
    ("08.3", "captioned", "line", "your function itself"), ("08.2", "captioned", np.bool_(True), "number of percent"),
    ("09.1", "tiny_vit", (0.2, 0.4), "your function itself"), ("09.2", "known", "lemon", "3 values"),
    ("09.2", "known", ("lemon", 0, 1), "2 values"), ("09.2", "known", ("lemon", (["emoji-a"], 0), ("emoji-b", 0)), "2 values"),
    ("09.2", "known", ("lemon", ("emoji-a", 2), ("emoji-b", 0)), "0 to 1"),
    ("09.2", "known", ("lemon", ("emoji-c", 0), ("emoji-b", 0)), "atlas is one of emoji-a, emoji-b"),
    ("09.2", "known", ("lemno", ("emoji-a", 0), ("emoji-b", 0)), "top scenes show is one of .*Did you mean lemon"),
    ("09.3", "tiny_vit", "steps", "2 values"), ("09.3", "tiny_vit", ("luck", "pit"), "A cause is one of"),
    ("09.3", "tiny_vit", ("steps", "deit"), "A family is one of"),
    ("10.1", "suspect", 75, "is a player, itself"), ("10.2", "suspect", 128, "neuron .* 0 to 127"),
    ("10.3", "suspect", "65", "percentage points"), ("10.4", "suspect", 101, "number of percent"),
    ("11.1", "photographs", torch.zeros(6, 3), "your function itself"),
    ("11.2", "photographs", True, "mean cosine similarity"), ("11.3", "photographs", "index.html", "report, made by vv.Report"),
])
def test_an_answer_of_the_wrong_kind_is_told_what_is_wanted(exercise, planted, answer, wanted, request, tiny_vit):
    model = request.getfixturevalue(planted) or tiny_vit
    with pytest.raises(VitvizError, match=wanted):
        vv.check(exercise, answer, model)


def test_a_network_of_other_classes_is_told_that_its_check_needs_theirs():
    network = timm.create_model("vit_tiny_patch16_224", img_size=112, embed_dim=24, depth=1, num_classes=4)
    large = vv.wrap(network, 112, class_names=["ant", "bee", "cat", "dog"])  # 128 images by default, half of what 03.4 shows
    with pytest.raises(VitvizError, match="knows no class"):
        vv.check("03.4", (100, 50), large)


# Functions of notebooks 08, 09 and 11: a right one in two ways, and each mistake by what it lacks


def printed(exercise: str, answer, capsys) -> str:
    vv.check(exercise, answer)
    return capsys.readouterr().out


def test_a_fraction_explained_is_epsilon_squared(capsys):
    def epsilon(values, labels):
        return 1 - within(values, labels) / (len(values) - len(labels.unique())) / values.var()

    def within(values, labels):
        return sum(((values[labels == k] - values[labels == k].mean()) ** 2).sum() for k in labels.unique())

    def by_one_hot(values, labels):
        groups = torch.nn.functional.one_hot(labels).double()
        groups, values = groups[:, groups.sum(0) > 0], values.double()
        left = values - groups @ (groups.T @ values / groups.sum(0))
        return 1 - left.square().sum() / (len(values) - groups.shape[1]) / values.var()

    total = lambda values: ((values - values.mean()) ** 2).sum()  # noqa: E731
    for answer, said in ((epsilon, "Right"), (by_one_hot, "Right"), (lambda v, k: 1 - within(v, k) / total(v), "that is R²"),
                         (lambda v, k: 1 - epsilon(v, k), "left unexplained"),
                         (lambda v, k: torch.stack([v[k == g].mean() for g in k.unique()]).var(correction=0)
                          / v.var(correction=0), "counts a label with few")):
        assert said in printed("08.1", answer, capsys)


def test_a_control_covers_as_much_with_the_same_ink_and_nothing_to_read(capsys):
    paste = lambda picture, word, mask: picture * (1 - mask) + word * mask  # noqa: E731
    for answer, said in ((lambda p, w, m: paste(p, w.flip(3), m.flip(3)), "Right"),
                         (lambda p, w, m: paste(p, w.flip(2), m.flip(2)), "Right"), (paste, "the word itself"),
                         (lambda p, w, m: p, "covers 0 %"), (lambda p, w, m: p[0], "the shape"),
                         (lambda p, w, m: paste(p, 0.1 + 0 * w, m), "other colors"), (lambda p, w: p, "raised TypeError")):
        assert said in printed("08.3", answer, capsys)


def test_correlations_leave_one_out(capsys):
    def left_out(x, y, r=lambda x, y: torch.corrcoef(torch.stack([x, y]))[0, 1]):
        return torch.stack([r(torch.cat([x[:i], x[i + 1:]]), torch.cat([y[:i], y[i + 1:]])) for i in range(len(x))])

    def by_numpy(x, y):
        return [np.corrcoef(np.delete(x.numpy(), i), np.delete(y.numpy(), i))[0, 1] for i in range(len(x))]

    for answer, said in ((left_out, "Right"), (by_numpy, "Right"), (lambda x, y: left_out(x, y, lambda x, y: np.cov(x, y)[0, 1]
                          * torch.ones(())), "covariance"), (lambda x, y: left_out(x, y)[:1], "the shape"),
                         (lambda x, y: torch.corrcoef(torch.stack([x, y]))[0, 1].repeat(len(x)), "nothing is left out")):
        assert said in printed("09.1", answer, capsys)


def test_a_ridge_probe_has_a_penalty_and_its_bias_last(capsys):
    def probe(x, labels, classes, strength, first=False, eye=torch.eye):
        x = torch.cat([torch.ones(len(x), 1), x] if first else [x, torch.ones(len(x), 1)], 1)
        y = torch.nn.functional.one_hot(labels, classes).float()
        return torch.linalg.inv(x.T @ x + strength * eye(x.shape[1])) @ x.T @ y

    def by_lstsq(x, labels, classes, strength):  # ridge as least squares with d + 1 more rows
        x = torch.cat([x, torch.ones(len(x), 1)], 1)
        y = torch.cat([torch.nn.functional.one_hot(labels, classes).float(), torch.zeros(x.shape[1], classes)])
        return torch.linalg.lstsq(torch.cat([x, strength**0.5 * torch.eye(x.shape[1])]), y).solution

    spared = lambda d: torch.diag(torch.tensor([1.0] * (d - 1) + [0.0]))  # noqa: E731
    for answer, said in ((probe, "Right"), (by_lstsq, "Right"), (lambda x, y, c, s: probe(x, y, c, 0.0), "penalty is missing"),
                         (lambda *given: probe(*given, first=True), "last row"),
                         (lambda *given: probe(*given, eye=spared), "counts the bias"),
                         (lambda *given: probe(*given)[:-1], "the shape")):
        assert said in printed("11.1", answer, capsys)


# The door


@pytest.mark.parametrize("number", [torch.tensor(3), np.int64(3), np.array(3), 3])
def test_whole_numbers_may_come_as_tensors_arrays_and_numpy_numbers(number, suspect, capsys):
    vv.check("10.2", number, suspect)
    assert capsys.readouterr().out.startswith("Right")


@pytest.mark.parametrize("number", [torch.tensor(65.0), np.float32(65), 65])
def test_numbers_may_come_as_tensors_arrays_and_numpy_numbers(number, suspect, capsys):
    vv.check("10.3", number, suspect)
    assert capsys.readouterr().out.startswith("Right")


@pytest.mark.parametrize("exercise", ["00.1", "01.1", "01.2", "03.2", "06.3", "07.2", "08.3", "10.1", "10.3", "11.1", "11.3"])
def test_an_answer_of_any_other_type_gets_a_sentence(exercise, tiny_vit):
    for answer in (None, "x", [], {}, torch.zeros(2, 2), torch.tensor([]), float("nan"), 1j, object(), (), b"1", 10**5000):
        with pytest.raises(VitvizError, match=r"[.?]$"):
            vv.check(exercise, answer, tiny_vit)


def test_isolation_of_a_token_is_accepted_in_any_form_and_each_missing_idea_is_named(capsys):
    def before_softmax(attention, token):
        cut = torch.zeros(attention.shape[-1], attention.shape[-1], dtype=torch.bool)
        cut[token], cut[:, token] = True, True
        cut[token, token] = False
        return attention.log().masked_fill(cut, -torch.inf).softmax(-1)

    def masked(attention, token, row=True, column=True):
        mask = torch.ones_like(attention)
        mask[..., token, :] = 1 - row
        mask[..., :, token] *= 1 - column
        mask[..., token, token] = 1
        return attention * mask

    def normalized(weights):
        return weights / weights.sum(-1, keepdim=True)

    for answer, said in (
        (before_softmax, "Right"), (lambda a, t: normalized(masked(a, t)), "Right"), (lambda a, t: a, "nothing is cut"),
        (masked, "no longer sum to 1"), (lambda a, t: normalized(masked(a, t, column=False)), "still read the token"),
        (lambda a, t: normalized(masked(a, t, row=False)), "the token still reads"),
        (lambda a, t: normalized(masked(a, 0)), "only CLS is isolated"),
        (lambda a, t: a.masked_fill(masked(torch.ones_like(a), t) == 0, -torch.inf).softmax(-1), "second softmax"),
    ):
        vv.check("05.1", answer)
        assert said in capsys.readouterr().out, said


@pytest.mark.slow
def test_the_accuracy_with_an_isolated_token_is_that_of_isolated_cls_and_the_model_is_left_as_it_was():
    model = vv.load("emoji-vit-standard", device="cpu")
    scenes, before = nb05.color_world(model).batch(range(256)), model.state()
    with isolate_cls(model, 5), torch.inference_mode():
        expected = 100 * (model(scenes.images).argmax(1) == scenes.concept).double().mean().item()
    assert nb05.accuracy(model, 0, range(5)) == pytest.approx(expected, abs=0.5)
    assert model.state() == before


def test_a_check_without_a_model_or_of_no_exercise_says_what_is_wanted(tiny_vit):
    for exercise, model, said in (("00.1", None, "needs the model"), ("00.1", "emoji-vit", "needs the model"),
                                  (1, tiny_vit, "An exercise is one of .*; got 1"), ([], tiny_vit, "got \\[\\]")):
        with pytest.raises(VitvizError, match=said):
            vv.check(exercise, 1, model)


def judged(exercise: str, answers: dict, capsys) -> None:
    """Each of these functions gets a verdict with these words."""
    for said, answer in answers.items():
        vv.check(exercise, answer)
        assert said in capsys.readouterr().out, said


def test_the_objective_is_the_mean_over_patch_tokens(capsys):
    judged("00.2", {
        "Right: ": lambda hidden, n: hidden[:, 1:, n].mean(1),
        "Right": lambda hidden, n: (hidden[..., n].sum(1) - hidden[:, 0, n]) / (hidden.shape[1] - 1),
        "at the CLS token": lambda hidden, n: hidden[:, 0, n],
        "CLS token is in the mean": lambda hidden, n: hidden[:, :, n].mean(dim=1),
        "CLS is token 0": lambda hidden, n: hidden[:, :-1, n].mean(1),
        "sum over patch tokens": lambda hidden, n: hidden[:, 1:, n].sum(1),
        "strongest patch": lambda hidden, n: hidden[:, 1:, n].max(1).values,
        "shape () where (2,)": lambda hidden, n: hidden[:, 1:, n].mean(),
    }, capsys)


def test_the_parts_of_the_loop_are_tried_on_hidden_inputs(capsys):
    judged("01.1", {
        "Right: ": lambda a, v, w: w * v - a,
        "Right": lambda a, v, w: -(a - v.mul(w)),
        "sign is the other way": lambda a, v, w: a,
        "total variation is missing": lambda a, v, w: -a,
        "by its weight": lambda a, v, w: v - a,
        "an optimizer minimizes": lambda a, v, w: a - w * v,
        "enters with a plus": lambda a, v, w: -a - w * v,
        "enters with a minus": lambda a, v, w: a + w * v,
        "shape () where (3,)": lambda a, v, w: (w * v - a).sum(),
    }, capsys)
    judged("01.2", {
        "Right: ": lambda x: sum(x.diff(dim=d).square().sum((1, 2, 3)).sqrt() for d in (2, 3)),
        "Right": lambda x: (x[..., 1:, :] - x[..., :-1, :]).flatten(1).norm(dim=1) + x.diff(dim=3).flatten(1).norm(dim=1),
        "no root": lambda x: sum(x.diff(dim=d).square().sum((1, 2, 3)) for d in (2, 3)),
        "L1 norm": lambda x: sum(x.diff(dim=d).abs().sum((1, 2, 3)) for d in (2, 3)),
        "between rows are counted": lambda x: x.diff(dim=2).square().sum((1, 2, 3)).sqrt(),
        "between columns are counted": lambda x: x.diff(dim=3).square().sum((1, 2, 3)).sqrt(),
        "root of the mean": lambda x: sum(x.diff(dim=d).square().mean((1, 2, 3)).sqrt() for d in (2, 3)),
        "a root for each direction": lambda x: sum(x.diff(dim=d).square().sum((1, 2, 3)) for d in (2, 3)).sqrt(),
        "variance of the pixels": lambda x: x.flatten(1).var(1),
    }, capsys)
    judged("01.3", {
        "Right: ": lambda x, down, right: x.roll((down, right), (2, 3)),
        "Right": lambda x, down, right: x[:, :, (torch.arange(7) - down) % 7][..., (torch.arange(10) - right) % 10],
        "nothing is shifted": lambda x, down, right: x,
        "are swapped": lambda x, down, right: x.roll((right, down), (2, 3)),
        "up and to the left": lambda x, down, right: x.roll((-down, -right), (2, 3)),
        "are lost": lambda x, down, right: torch.nn.functional.pad(x, (right, -right, down, -down)),
        "only rows": lambda x, down, right: x.roll(down, 2),
        "only columns": lambda x, down, right: x.roll(right, 3),
    }, capsys)


def test_the_effective_dimension_is_tried_on_hidden_inputs(capsys):
    def eigenvalues(x):
        return torch.linalg.eigvalsh(torch.cov(x.T))

    judged("02.1", {
        "Right: ": lambda x: eigenvalues(x).sum() ** 2 / eigenvalues(x).square().sum(),
        "Right": lambda x: torch.cov(x.T).trace() ** 2 / torch.cov(x.T).square().sum(),
        "number of units": lambda x: x.shape[1],
        "the rank": lambda x: torch.linalg.matrix_rank(x - x.mean(0)),
        "mean is not subtracted": lambda x: (x.T @ x).trace() ** 2 / (x.T @ x).square().sum(),
        "singular values": lambda x: (v := torch.linalg.svdvals(x - x.mean(0))).sum() ** 2 / v.square().sum(),
        "reciprocal": lambda x: torch.cov(x.T).square().sum() / torch.cov(x.T).trace() ** 2,
        "between images": lambda x: torch.cov(x).trace() ** 2 / torch.cov(x).square().sum(),
        "missing its square": lambda x: torch.cov(x.T).trace() / torch.cov(x.T).square().sum(),
        "shape (7,) where ()": eigenvalues,
    }, capsys)


def test_images_scored_for_other_neurons_are_counted(capsys, monkeypatch, tiny_vit):
    @dataclass(frozen=True)
    class Made:
        neurons: list
        require_finished = lambda self: self  # noqa: E731

    def score(made):
        assert made.neurons == [1, 2, 3, 4, 5, 6, 7, 0]
        return SimpleNamespace(scores=SimpleNamespace(percentile=[99.1, 99.0, 100.0, 5, 5, 5, 5, 5]))

    monkeypatch.setattr(nb00, "Visualizer", lambda model: SimpleNamespace(
        render=lambda layer, neurons: Made([*neurons]), score=score))
    for answer, said in ((2, "Right: 2 of 8"), (3, "Not yet: not 3. Score"), (0, "Not yet"),
                         (8, "Not yet: not 8: that many are for the neurons they were made for. Score the same images for")):
        vv.check("00.3", answer, tiny_vit)
        assert capsys.readouterr().out.startswith(said)


def test_a_function_is_tried_on_hidden_inputs_and_a_known_mistake_is_named(capsys):
    inputs = [(torch.tensor([3.0, 4.0]),), (torch.tensor([0.0, 2.0, 5.0]),)]
    reference, misses = (lambda x: x - x.mean()), {"divide by the standard deviation later": lambda x: (x - x.mean()) / x.std()}
    judge = lambda answer: implementation(answer, reference, inputs, misses)  # noqa: E731
    assert judge(lambda x: x - x.sum() / len(x)) == (True, "your function gives the expected values on 2 hidden inputs.")
    assert judge(lambda x: (x - x.mean()) / x.std()) == (False, "divide by the standard deviation later")
    assert judge(lambda x: x - 3.5) == (False, "on a hidden input it is 1.17 off")  # 3.5 is right for the first only
    assert judge(lambda x: x.mean()) == (False, "your function returned the shape () where (2,) is expected")
    assert judge(lambda x: x / "2")[1].startswith("your function raised TypeError")
    assert judge(lambda x: print())[1].startswith("your function returned None")
    assert judge(lambda x: x > 1) == (False, "on a hidden input it is 1.5 off") and not judge(lambda x: x * float("nan"))[0]
    assert "real numbers" in judge(lambda x: torch.fft.fft(x))[1] and "real numbers" in judge(lambda x: "3.5")[1]
    with pytest.raises(VitvizError, match="your function itself"):
        judge(3.0)
    changed = inputs[0][0]
    judge(lambda x: x.mul_(0))
    assert changed.tolist() == [3.0, 4.0]  # a function that writes into its argument spoils no later comparison
