"""Foreground and background: planted models that see only one of them, with numbers worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.layers import Mlp
from torch import nn

from vitviz_nb import cli
from vitviz_nb.datasets.backgrounds import CONTEXTS
from vitviz_nb.datasets.boxes import Boxes
from vitviz_nb.datasets.emoji_world import EmojiWorld
from vitviz_nb.experiments import background, semantics
from vitviz_nb.experiments.background import (
    bounding_boxes,
    context_chance,
    context_consistency,
    context_selectivity,
    context_swap,
    foreground_background,
    masked,
    paper_table,
)
from vitviz_nb.models.sites import Site
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.models.wrapping import imagenet_names
from vitviz_nb.utils.errors import VitvizError

COLORS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


class Painted:
    """Six images as a data set: a square in one color (the class) on a ground in another, with its mask."""

    classes = list(COLORS)
    pairs = [(0, 1), (0, 2), (1, 0), (1, 0), (2, 2), (2, 0)]  # class, ground

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        thing, ground = (tuple(int(255 * v) for v in list(COLORS.values())[k]) for k in self.pairs[i])
        image, mask = Image.new("RGB", (16, 16), ground), Image.new("L", (16, 16))
        image.paste(thing, (2, 2, 10, 10))
        mask.paste(255, (2, 2, 10, 10))
        return image, (self.pairs[i][0], mask)


class At(nn.Module):
    """Answers with the color at one pixel; six further classes share what is left."""

    def __init__(self, row: int, column: int):
        super().__init__()
        self.row, self.column = row, column

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = x[:, :, self.row, self.column] / 2 + 0.5
        return torch.cat([seen, torch.full((len(x), 6), 0.5) - 0.01 * torch.arange(6)], 1)


def painted(row: int, column: int) -> VisionModel:
    return VisionModel(At(row, column), f"at {row} {column}", 16, class_names=[*COLORS, *"defghi"])


def shown(result, measure: str = "top-1") -> dict[str, float]:
    rows = result.where(measure=measure).table
    return {name: round(value, 1) for name, value in zip(rows["shown"], rows["value"], strict=True)}


def test_a_model_that_looks_at_the_thing_loses_nothing_without_the_background():
    assert shown(foreground_background(painted(4, 4), Painted())) == {"whole": 100, "foreground": 100, "background": 0}


def test_a_model_that_looks_at_the_ground_loses_nothing_without_the_thing():
    # Of six grounds only the fifth has the color of its class.
    assert shown(foreground_background(painted(14, 14), Painted())) == {"whole": 16.7, "foreground": 0, "background": 16.7}


def test_parts_are_divided_by_whole_images_as_the_paper_does():
    result = foreground_background(painted(14, 14), Painted()).relative_to(shown="whole")
    assert shown(result) == {"whole": 100, "foreground": 0, "background": 100}
    never = VisionModel(nn.Flatten(), "never", 16, class_names=[f"{i}" for i in range(765)] + list(COLORS))
    with pytest.raises(VitvizError, match="relative to a value of 0"):
        foreground_background(never, Painted()).relative_to(shown="whole")


def test_boxes_enclose_their_masks():
    masks = torch.zeros(3, 4, 5)
    masks[0, 1, 1] = masks[0, 3, 3] = 1
    masks[1, 2, 4] = 0.4  # less than half of a pixel
    masks[2] = 1
    wanted = torch.zeros(3, 4, 5)
    wanted[0, 1:4, 1:4] = 1
    wanted[2] = 1
    assert torch.equal(bounding_boxes(masks), wanted)
    images = torch.full((3, 3, 4, 5), 0.5)
    assert torch.equal(masked(images, masks, "foreground", boxes=True)[0, 0], 0.5 * wanted[0])
    assert torch.equal(masked(images, masks, "background")[2], torch.zeros(3, 4, 5))
    with pytest.raises(VitvizError, match="one of whole, foreground, background; got 'both'"):
        masked(images, masks, "both")
    with pytest.raises(VitvizError, match="fill is one of black, mean; got 'gray'"):
        masked(images, masks, "foreground", fill="gray")
    with pytest.raises(VitvizError, match="masks are floats of shape"):
        masked(images, masks[:, :2], "foreground")
    with pytest.raises(VitvizError, match="3 images and 2 masks"):
        masked(images, masks[:2], "foreground")
    with pytest.raises(VitvizError, match=r"in \[0, 1\], got 128 to 128"):
        masked(255 * images, masks, "foreground")
    with pytest.raises(VitvizError, match="vv.image_folder"):
        masked(images, masks, "foreground", boxes="boxes.csv")


def test_what_is_not_shown_can_have_the_mean_color_of_what_is():
    image, mask = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2)
    image[0, 0] = torch.tensor([[0.2, 0.4], [0.6, 1.0]])
    mask[0, 1, 1] = 1
    wanted = torch.tensor([[0.2, 0.4], [0.6, 0.4]])
    assert torch.allclose(masked(image, mask, "background", fill="mean")[0, 0], wanted)
    assert torch.allclose(masked(image, mask, "foreground", fill="mean")[0, 0], torch.ones(2, 2))
    assert torch.equal(masked(image, torch.ones(1, 2, 2), "background", fill="mean"), torch.zeros(1, 3, 2, 2))  # nothing is left


def test_fills_do_not_share_answers_in_the_cache():
    model = painted(4, 4)
    black, filled = (foreground_background(model, Painted(), fill=fill) for fill in ("black", "mean"))
    assert shown(black)["background"] == 0
    assert shown(filled)["background"] == 16.7  # the hole has the color of the ground, which is the class once in six
    assert "mean color" in filled.title and "mean" not in black.title


def test_chance_of_the_context_is_worked_out_by_hand():
    world = EmojiWorld(concepts=["shark", "whale", "lion"], styles=("flat",))
    homes = [CONTEXTS[i] for i in world.usual_context]
    assert homes[0] == homes[1] != homes[2]
    # Two concepts live together, one elsewhere, ten contexts are nobody's: the best guess of each context is right with
    # probability 0.7, 0.7 and 10 times 0.3 / 11, each a third of the scenes.
    assert context_chance(world)["top-1"] == pytest.approx(100 / 3 * (0.7 + 0.7 + 10 * 0.3 / 11))
    assert context_chance(world)["top-5"] == pytest.approx(100)


class Home(nn.Module):
    """Knows each context by its mean color at the corners, and answers with a concept at home there."""

    def __init__(self, world: EmojiWorld):
        super().__init__()
        self.world, self.asked = world, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), len(self.world.concepts))


def test_scenes_are_drawn_in_the_contexts_asked_for_and_wrong_answers_are_followed():
    world = EmojiWorld(concepts=["shark", "lion", "rocket"], styles=("flat",), size=16)
    usual = world.usual_context
    scenes = world.batch(range(64), contexts=np.full(64, usual[1]))
    assert (scenes.context == int(usual[1])).all()
    own = world.batch(range(64))
    same = own.context == int(usual[1])
    assert same.any() and torch.equal(scenes.images[same], own.images[same])
    assert torch.equal(scenes.concept, own.concept) and torch.equal(scenes.masks, own.masks)

    model = VisionModel(Home(world), "always the shark", 16, class_names=world.concepts)
    table = context_swap(model, world, n=64).table.set_index(["context", "measure"])["value"]
    sharks = 100 * (own.concept == 0).float().mean().item()
    assert table["usual", "accuracy"] == table["another", "accuracy"] == pytest.approx(sharks)
    # In their usual contexts, wrong answers stand before lions and rockets, never in the shark's water.
    assert table["usual", "errors that follow the context"] == 0
    assert 0 < table["another", "errors that follow the context"] < 50


def test_only_models_of_its_concepts_can_be_asked_about_swapped_contexts():
    with pytest.raises(VitvizError, match="has other classes. Take an embedded model"):
        context_swap(painted(0, 0))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_it_runs_on_timm_models_with_random_weights(name):
    module = timm.create_model(name, num_classes=3, img_size=32, depth=2)
    model = VisionModel(module, name, 32, class_names=list(COLORS), trained=False)
    result = foreground_background(model, Painted(), boxes=True)
    assert list(result.table["n"]) == [6] * 6 and "bounding boxes" in result.title


@pytest.fixture
def imagenet(tmp_path: Path) -> tuple[Path, Path]:
    """A stand-in for ImageNet: two classes by their numbers, boxes in its own form, one image without."""
    root = tmp_path / "train"
    lines = ["ImageId,PredictionString"]
    for number, colors in (("n01440764", ["red", "blue", "red"]), ("n01443537", ["blue", "blue"])):
        (root / number).mkdir(parents=True)
        for i, color in enumerate(colors):
            image = Image.new("RGB", (16, 16), "lime")
            image.paste(color, (2, 2, 10, 10))
            image.save(root / number / f"{number}_{i}.png")
            lines.append(f"{number}_{i},{number} 2 2 10 10")
    lines.pop()  # the last image has no box
    boxes = tmp_path / "LOC_train_solution.csv"
    boxes.write_text("\n".join(lines) + "\n")
    return root, boxes


class Thousand(nn.Module):
    """Of ImageNet's classes, the first for red at one pixel, the second for blue, the third for lime."""

    def __init__(self, row: int, column: int):
        super().__init__()
        self.row, self.column = row, column

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        red, green, blue = (x[:, :, self.row, self.column] / 2 + 0.5).unbind(1)
        rest = 0.5 - 0.001 * torch.arange(997)
        return torch.cat([torch.stack([red, blue, green], 1), rest.expand(len(x), -1)], 1)


def thousand(row: int, column: int) -> VisionModel:
    return VisionModel(Thousand(row, column), f"at {row} {column}", 16, class_names=imagenet_names())


def test_the_papers_table_is_made_from_imagenets_folders_and_boxes(imagenet):
    result = paper_table([thousand(4, 4), thousand(14, 14)], *imagenet)
    value = result.table.set_index(["model", "shown", "measure"])["value"].round(1)
    # Of red, blue, red and blue, all but the second are what their class is; four images have boxes.
    assert set(result.table["n"]) == {4}
    assert value["at 4 4", "whole", "top-1"] == value["at 4 4", "foreground", "top-1"] == 75
    # Black leaves 0.5 to classes that do not exist here: nothing is right, and the first three are not among five.
    assert value["at 4 4", "background", "top-5"] == 0
    assert value["at 14 14", "whole", "top-1"] == 0
    with pytest.raises(VitvizError, match="relative to a value of 0"):
        result.relative_to(shown="whole")
    share = paper_table([thousand(4, 4)], *imagenet).relative_to(shown="whole").table.set_index(["shown", "measure"])["value"]
    assert share["foreground", "top-1"] == 100 and share["background", "top-1"] == 0


def test_the_boxes_are_read_once_whatever_the_number_of_classes_and_models(imagenet, monkeypatch: pytest.MonkeyPatch):
    read, reads = Boxes.__init__, []
    monkeypatch.setattr(Boxes, "__init__", lambda self, path: reads.append(path) or read(self, path))
    paper_table([thousand(4, 4), thousand(14, 14)], *imagenet)
    assert reads == [imagenet[1]]


def test_the_papers_table_takes_some_images_of_each_class_and_says_which_are_left_out(imagenet):
    root, boxes = imagenet
    (root / "n01484850").mkdir()
    with pytest.warns(UserWarning, match="1 of 3 classes left out: n01484850"):
        assert set(paper_table([thousand(4, 4)], root, boxes, per_class=1).table["n"]) == {2}
    with pytest.raises(VitvizError, match="has no subfolders"):
        paper_table([thousand(4, 4)], root / "n01440764", boxes)
    boxes.write_text("ImageId,PredictionString\nother,n01440764 1 2 3 4\n")
    with pytest.raises(VitvizError, match="No class in .* has an image with a box"):
        paper_table([thousand(4, 4)], root, boxes)


def test_the_command_prints_and_writes_the_table(imagenet, monkeypatch, capsys, tmp_path: Path):
    monkeypatch.setattr("vitviz_nb.models.loading.load", lambda name, device=None: thousand(4, 4))
    root, boxes = imagenet
    arguments = ["background", "some_vit", "--images", str(root), "--boxes", str(boxes), "--out", str(tmp_path / "t.csv")]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "75.00  (95 % interval 30.06 to 95.44, n = 4)" in out and "as the paper's table" in out
    assert "foreground" in (tmp_path / "t.csv").read_text()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The scenes that were drawn last, under "scenes", for models that are planted to know the truth about them."""
    last, batch = {}, EmojiWorld.batch

    def draw(self, *arguments, **named):
        last["scenes"] = batch(self, *arguments, **named)
        return last["scenes"]

    monkeypatch.setattr(EmojiWorld, "batch", draw)
    return last


class Knows(nn.Module):
    """Answers with the first concept at home in the context of the scene, or always with the same one."""

    def __init__(self, world: EmojiWorld, drawn: dict, always: int | None = None):
        super().__init__()
        self.world, self.drawn, self.always = world, drawn, always

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        homes = torch.from_numpy(self.world.usual_context)
        at_home = (self.drawn["scenes"].context[:, None] == homes).float()
        if self.always is not None:
            at_home = torch.zeros_like(at_home)
            at_home[:, self.always] = 1
        return at_home - 1e-3 * torch.arange(len(homes))


def test_a_model_that_knows_contexts_answers_with_what_is_at_home_there(drawn):
    world = EmojiWorld(concepts=["shark", "lion", "rocket"], styles=("flat",), size=16)
    own = world.facts(np.arange(96))
    homes = world.usual_context
    model = VisionModel(Knows(world, drawn), "knows", 16, class_names=world.concepts)
    table = context_consistency(model, world, n=96).table.set_index("prediction")
    inhabited = 100 * np.isin(own["context"], homes).mean()  # in other contexts nothing is at home
    assert table["value"]["consistent with the context"] == pytest.approx(inhabited) and inhabited > 60
    assert table["value"]["shuffled contexts"] < inhabited / 2
    first = np.array([next((i for i, home in enumerate(homes) if home == here), 0) for here in own["context"]])
    assert table["value"]["correct, top-1"] == pytest.approx(100 * (first == own["concept"]).mean())
    assert table["n"].tolist() == [96] * 4

    model = VisionModel(Knows(world, drawn, always=1), "always the lion", 16, class_names=world.concepts)
    table = context_consistency(model, world, n=96, boxes=False)
    values = table.table.set_index("prediction")["value"]
    assert values["consistent with the context"] == values["shuffled contexts"]  # it knows nothing, and gains nothing
    assert "along masks" in table.title
    with pytest.raises(VitvizError, match="has other classes. Take an embedded model"):
        context_consistency(painted(0, 0))


def test_units_that_answer_to_a_context_are_found_however_often_it_is_shown(drawn, monkeypatch):
    world = EmojiWorld(concepts=["shark", "lion"], styles=("flat",), size=16)

    def answers(model, kind, images):
        scenes = drawn["scenes"]
        snow = (scenes.context == CONTEXTS.index("snow")).float()
        return [torch.stack([snow, 5 - 2 * snow, scenes.concept.float(), torch.full_like(snow, 0.1)], 1)]

    monkeypatch.setattr(semantics, "activations", answers)
    model = VisionModel(Mlp(3, 4), "planted", 16, class_names=world.concepts)
    site = Site("mlp", 0, 4, 0, None, "", 0)
    monkeypatch.setattr(background, "find_site", lambda model, kind: site)
    monkeypatch.setattr(background, "find_sites", lambda model: {"mlp": [site]})
    (found,) = context_selectivity(model, world, n=240)
    seen = np.mean([semantics.random_contexts([i])[0] == CONTEXTS.index("snow") for i in range(240)])
    # One in a context and zero elsewhere: mean p and variance p (1 - p).
    assert found[CONTEXTS.index("snow"), 0].item() == pytest.approx(((1 - seen) / seen) ** 0.5, rel=1e-4)
    assert found[:, 0].argmax() == found[:, 1].argmin() == CONTEXTS.index("snow")
    assert found[:, 2].abs().max() < 0.9  # 20 scenes a context
    assert (found[:, 3] == 0).all()
    monkeypatch.setattr(semantics, "activations", None)  # a second run reads the cache
    assert torch.equal(context_selectivity(model, world, n=240)[0], found)
