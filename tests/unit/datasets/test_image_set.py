"""Images of any origin: which they are, how they are called, what they show, and what is refused."""

import gc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torchvision import datasets

import vitviz_nb as vv
from vitviz_nb.datasets.emoji_world import STYLES, EmojiWorld, Scenes
from vitviz_nb.datasets.image_set import ImageSet, derangement
from vitviz_nb.models.sites import find_site
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.models.wrapping import imagenet_names
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize.scores import reference_activations

COLORS = {"bee": (255, 255, 0), "ant": (0, 0, 0), "dog": (128, 64, 0), "cat": (255, 255, 255)}  # not in the model's order


def picture(name: str, size: int = 40) -> Image.Image:
    return Image.new("RGB", (size, size), COLORS[name])


def pixels(*names: str) -> Tensor:
    """What the model is to see of these pictures, 32 px a side."""
    return torch.stack([torch.tensor(COLORS[name]).view(3, 1, 1).expand(3, 32, 32) / 255 for name in names])


def write(folder: Path, *names: str) -> Path:
    """Pictures as PNG files, each in the subfolder of its class, which is named as ``names`` writes it."""
    for name in names:
        (folder / name).mkdir(parents=True)
        picture(name.lower()).save(folder / name / "0.png")
    return folder


class Zoo:
    """A data set as torchvision makes them: ant, bee, dog, ant, … in its own order of classes."""

    def __init__(self, length: int = 6, classes=("dog", "ant", "bee")):
        self.length, self.classes, self.read = length, list(classes), []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int):
        if i >= self.length:
            raise IndexError(i)
        self.read.append(i)
        return picture(("ant", "bee", "dog")[i % 3]), (1, 2, 0)[i % 3]


# Which images


def test_an_image_set_may_be_made_of_another(tiny_vit):
    first = ImageSet(tiny_vit, Zoo(), 4)
    assert ImageSet(tiny_vit, first).n == ImageSet(tiny_vit, first, 9).n == 4 and ImageSet(tiny_vit, first, 2).n == 2
    assert torch.equal(ImageSet(tiny_vit, first).batch(range(4)), first.batch(range(4)))
    assert ImageSet(tiny_vit, first).key == first.key


def test_by_default_they_are_1024_validation_scenes_at_the_models_size(tiny_vit):
    image_set, world = ImageSet(tiny_vit), EmojiWorld("val", size=32)
    assert image_set.n == 1024 and image_set.name == "1,024 Emoji World scenes" and image_set.source.styles == STYLES
    assert torch.equal(image_set.batch([0, 1023]), world.batch([0, 1023]).images)
    assert image_set.key == ImageSet(tiny_vit, world).key


def test_an_embedded_model_sees_the_styles_it_was_trained_on(shelf):
    assert ImageSet(vv.load("emoji-vit", device="cpu")).source.styles == ("3d", "flat")


@pytest.mark.parametrize(("size", "n"), [(96, 1024), (97, 128)])
def test_models_that_see_more_than_96_px_are_shown_128(size, n):
    assert ImageSet(VisionModel(nn.Identity(), "large", size)).n == n


def test_a_world_and_the_number_of_scenes_can_be_chosen(tiny_vit):
    world = EmojiWorld("test", concepts=["ant", "cat"], size=32, seed=3)
    image_set = ImageSet(tiny_vit, world, 5)
    assert image_set.source is world and image_set.n == 5 and image_set.name == "5 Emoji World scenes"
    assert torch.equal(image_set.batch(range(5)), world.batch(range(5)).images)


def test_a_folder_is_taken_whole_or_as_far_as_asked(tiny_vit, tmp_path):
    folder = vv.image_folder(write(tmp_path / "zoo", "ant", "cat", "dog"), 32)
    whole, two = ImageSet(tiny_vit, folder), ImageSet(tiny_vit, folder, 2)
    assert whole.source is folder and whole.n == 3 and whole.name == "3 images"
    assert torch.equal(whole.batch(range(3)), pixels("ant", "cat", "dog"))
    assert two.n == 2 and torch.equal(two.batch([1]), pixels("cat"))
    assert ImageSet(tiny_vit, folder, 99).n == 3


def test_a_tensor_is_taken_as_it_is(tiny_vit):
    images = torch.rand(7, 3, 32, 32)
    image_set = ImageSet(tiny_vit, images)
    assert image_set.n == 7 and torch.equal(image_set.batch([6, 2]), images[[6, 2]])
    assert ImageSet(tiny_vit, images, 4).n == 4


def test_images_do_not_change_with_what_they_were_made_from(tiny_vit, tmp_path):
    Image.new("RGB", (32, 32), "white").save(tmp_path / "1.png")
    (tmp_path / "boxes.csv").write_text("file,left,top,right,bottom\n1.png,0,0,32,32\n")
    tensor, folder = torch.ones(1, 3, 32, 32), vv.image_folder(tmp_path, 32, boxes=tmp_path / "boxes.csv")
    for given, changed in ((tensor, [tensor]), (folder, [folder.images, folder.masks])):
        image_set = ImageSet(tiny_vit, given)
        for part in changed:
            part.zero_()
        assert image_set.batch([0]).min() == 1 and (given is tensor or image_set.masks([0]).min() == 1)
    scenes = ImageSet(tiny_vit, EmojiWorld(size=32))
    for part in (scenes.batch, scenes.masks, lambda numbers: next(scenes.batches(""))[1][:2]):
        before = part([0, 1]).clone()
        part([0, 1]).zero_()
        assert torch.equal(part([0, 1]), before)


@pytest.mark.parametrize("images", [
    torch.rand(2, 3, 32, 32, device="meta"), torch.rand(2, 3, 32, 32).to_sparse(),
    torch.rand(2, 3, 32, 32).to(torch.float8_e4m3fn), torch.nested.nested_tensor([torch.rand(3, 32, 32)] * 2)],
    ids=["meta", "sparse", "float8", "nested"])
def test_tensors_that_hold_no_plain_floats_are_refused(tiny_vit, images):
    for take in (tiny_vit, lambda images: ImageSet(tiny_vit, images)):
        with pytest.raises(VitvizError, match=r"floats of shape \(N, 3, 32, 32\) in \[0, 1\], got .*(meta|sparse|float8|nested)"):
            take(images)


def test_a_data_set_without_classes_or_with_an_image_without_pixels_is_refused(tiny_vit):
    zoo = Zoo()
    zoo.classes = None
    with pytest.raises(VitvizError, match="data set whose classes are known"):
        ImageSet(tiny_vit, zoo)
    for item in ((Image.new("RGB", (0, 4)), 1), (Image.new("RGB", (4, 4)), (1, Image.new("L", (0, 0))))):
        empty = type("Empty", (Zoo,), {"__getitem__": lambda self, i, item=item: item})()
        with pytest.raises(VitvizError, match="px has no pixels"):
            ImageSet(tiny_vit, empty)


def test_floats_of_any_precision_can_be_seen_by_the_model(tiny_vit):
    images = torch.rand(2, 3, 32, 32)
    for kind in (torch.float64, torch.float16):  # NumPy's floats, read by torch.from_numpy, are float64
        logits = tiny_vit(ImageSet(tiny_vit, images.to(kind)).batch(range(2)))
        assert torch.allclose(logits.float(), tiny_vit(images), atol=1e-2)


def test_a_data_set_is_read_at_the_models_size_and_no_further_than_needed(tiny_vit):
    zoo = Zoo(9)
    image_set = ImageSet(tiny_vit, zoo, 4)
    assert image_set.n == 4 and zoo.read == [0, 1, 2, 3]
    assert torch.equal(image_set.batch(range(4)), pixels("ant", "bee", "dog", "ant"))
    assert ImageSet(tiny_vit, Zoo(3)).n == ImageSet(tiny_vit, Zoo(3), 99).n == 3
    assert ImageSet(tiny_vit, Zoo(1030)).n == 1024  # ImageNet's 50,000 would take hours


def test_a_data_set_is_cropped_to_the_middle_of_its_pictures(tiny_vit):
    class Oblong(Zoo):
        def __getitem__(self, i: int):
            banner = picture("ant").resize((80, 40))
            banner.paste(picture("cat"), (20, 0))  # black, 40 px of white, black
            return banner, 0

    seen = ImageSet(tiny_vit, Oblong(1)).batch([0])
    assert seen.shape == (1, 3, 32, 32) and (seen[..., 2:-2] == 1).all()  # but for what the outermost pixels take in


def test_batches_hold_every_image_once_and_in_order(tiny_vit):
    images = torch.arange(37.0).div(37).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    batches = list(ImageSet(tiny_vit, images).batches("count"))
    assert [i for numbers, _ in batches for i in numbers] == list(range(37))
    assert torch.equal(torch.cat([batch for _, batch in batches]), images)
    assert all(torch.equal(batch, images[list(numbers)]) for numbers, batch in batches) and len(batches) > 1


# Keys


def test_scenes_are_drawn_once_for_many_conditions_and_those_of_another_world_anew(tiny_vit, monkeypatch):
    draw, drawn = EmojiWorld.batch, []
    monkeypatch.setattr(EmojiWorld, "batch", lambda it, numbers, *more: drawn.append(len(numbers)) or draw(it, numbers, *more))
    world, flat = EmojiWorld("val", size=32), EmojiWorld("val", styles=("flat",), size=32)
    first = torch.cat([images.clone() for _, images in ImageSet(tiny_vit, world, 40).batches("")])
    for _, images in ImageSet(tiny_vit, world, 40).batches(""):
        images.zero_()  # the caller's own
    again = torch.cat([images for _, images in ImageSet(tiny_vit, world, 40).batches("")])
    assert drawn == [16, 16, 8] and torch.equal(first, again) and first.std() > 0.1
    others = torch.cat([images for _, images in ImageSet(tiny_vit, flat, 40).batches("")])
    assert drawn == 2 * [16, 16, 8] and not torch.equal(others, first)
    assert torch.equal(ImageSet(tiny_vit, world, 40).batch(range(16)), first[:16])
    assert len(drawn) == 7  # only those of the last world stay


def test_scenes_that_are_kept_take_64_megabytes_at_most():
    model = SimpleNamespace(image_size=224, device=torch.device("cpu"), name="large")
    image_set = ImageSet(model, EmojiWorld("val", size=224), 160)
    assert sum(len(images) for _, images in image_set.batches("")) == 160  # 128 MB with their masks
    kept = [each for each in gc.get_objects() if type(each) is Scenes and each.images.shape[-1] == 224]
    assert 0 < sum(4 * (each.images.numel() + each.masks.numel()) for each in kept) <= 64e6


def test_the_same_images_have_the_same_key_and_others_another(tiny_vit, tmp_path):
    folder = vv.image_folder(write(tmp_path / "zoo", "ant", "bee", "dog"), 32)
    images = pixels("ant", "bee", "dog")
    key = ImageSet(tiny_vit, images).key
    # Whichever way they come: a copy, the first of more, files, a data set.
    assert {ImageSet(tiny_vit, images.clone()).key, ImageSet(tiny_vit, torch.cat([images, images]), 3).key,
            ImageSet(tiny_vit, folder).key, ImageSet(tiny_vit, Zoo(3)).key} == {key}
    other = images.clone()
    other[2, 1, 31, 31] += 0.001
    derangement = [other, images.flip(0), images[:2], EmojiWorld(size=32), EmojiWorld(size=32, seed=1)]
    assert len({key, *(ImageSet(tiny_vit, source).key for source in derangement)}) == 6


def test_what_was_measured_on_more_scenes_of_a_world_is_not_taken_for_fewer(tiny_vit):
    place = find_site(tiny_vit, 0)
    eight = reference_activations(tiny_vit, place, ImageSet(tiny_vit, EmojiWorld(size=32), 8))
    four = reference_activations(tiny_vit, place, ImageSet(tiny_vit, EmojiWorld(size=32), 4))
    assert len(eight) == 8 and len(four) == 4 and torch.allclose(four, eight[:4], atol=1e-5)


# Labels and masks


def test_labels_are_the_models_class_numbers_by_name_in_any_case(tiny_vit, tmp_path):
    # Folders come in the order Cat, DOG, ant.
    model = VisionModel(tiny_vit.module, "shouting", 32, class_names=["ANT", "BEE", "cat", "dog"])
    image_set = ImageSet(model, vv.image_folder(write(tmp_path / "zoo", "DOG", "ant", "Cat"), 32))
    assert torch.equal(image_set.batch(range(3)), pixels("cat", "dog", "ant"))
    assert image_set.labels(range(3)).tolist() == [2, 3, 0] and image_set.labels([2]).tolist() == [0]
    assert image_set.labels(range(3)).dtype == torch.int64


@pytest.mark.parametrize("classes", [["dog", "ant", "bee"], [("Dog", "domestic dog"), ("ant", "emmet"), ("bee",)]])
def test_labels_of_a_data_set_go_by_the_name_or_first_synonym_of_its_classes(tiny_vit, classes):
    assert ImageSet(tiny_vit, Zoo(4, classes)).labels(range(4)).tolist() == [0, 1, 3, 0]  # ant, bee, dog, ant


def test_a_data_set_of_torchvision_is_read_and_labeled(tiny_vit, tmp_path):
    folder = datasets.ImageFolder(write(tmp_path / "zoo", "dog", "bee", "cat"))  # numbers bee 0, cat 1, dog 2
    image_set = ImageSet(tiny_vit, folder)
    assert torch.equal(image_set.batch(range(3)), pixels("bee", "cat", "dog"))
    assert image_set.labels(range(3)).tolist() == [1, 2, 3]


def test_labels_of_a_world_are_its_scenes_concepts(tiny_vit):
    world = EmojiWorld(concepts=["dog", "ant", "cat"], size=32)  # another order than the model's
    concept = world.batch(range(20)).concept
    expected = [tiny_vit.class_names.index(world.concepts[i]) for i in concept]
    image_set = ImageSet(tiny_vit, world, 20)
    assert image_set.labels(range(20)).tolist() == expected and len(set(expected)) == 3
    assert image_set.labels([7, 3]).tolist() == [expected[7], expected[3]]


def test_a_class_the_model_does_not_know_is_named(tiny_vit):
    image_set = ImageSet(tiny_vit, Zoo(3, ["wolf", "ant", "bee"]))
    assert image_set.labels([0, 1]).tolist() == [0, 1]
    with pytest.raises(VitvizError, match=r"knows no class 'wolf' \(1 of the labels"):
        image_set.labels(range(3))


def test_images_without_labels_say_which_images_have_some(tiny_vit, tmp_path):
    picture("ant").save(tmp_path / "ant.png")  # no subfolder, no class
    for images in (vv.image_folder(tmp_path, 32), pixels("ant")):
        with pytest.raises(VitvizError, match="1 images have none. Use an EmojiWorld, a folder with a subfolder per class"):
            ImageSet(tiny_vit, images).labels([0])


def test_a_model_without_class_names_has_no_labels(tiny_vit):
    nameless = VisionModel(tiny_vit.module, "nameless", 32)
    with pytest.raises(VitvizError, match="a model whose class names are known"):
        ImageSet(nameless, Zoo(2)).labels([0])


def test_masks_are_the_worlds_own_and_no_other_images_have_any(tiny_vit):
    world = EmojiWorld(size=32)
    masks = ImageSet(tiny_vit, world).masks([4, 2])
    assert torch.equal(masks, world.batch([4, 2]).masks) and masks.shape == (2, 32, 32) and masks.max() > 0
    with pytest.raises(VitvizError, match="The 3 images have no masks; use an EmojiWorld"):
        ImageSet(tiny_vit, Zoo(3)).masks([0])

@pytest.fixture(scope="module")
def imagenet() -> VisionModel:
    return VisionModel(nn.Identity(), "of ImageNet", 32, class_names=imagenet_names())


class Thousand(Zoo):
    """Eight items of ImageNet as torchvision has it, its classes tuples of synonyms: cranes twice, cardigans, maillots, …"""

    numbers = (134, 517, 264, 474, 638, 639, 0, 999)

    def __init__(self):
        info = ImageNetInfo("imagenet-1k")
        super().__init__(8, [tuple(info.index_to_description(i).split(", ")) for i in range(1000)])

    def __getitem__(self, i: int):
        return picture("ant"), self.numbers[i]


def test_classes_of_imagenet_that_share_a_name_keep_their_numbers(imagenet):
    assert ImageSet(imagenet, Thousand()).labels(range(8)).tolist() == list(Thousand.numbers)


@pytest.mark.parametrize(("folder", "index"), [
    ("n02012849", 134), ("n03126707", 517), ("134", 134), ("tench", 0), ("Tinca tinca", 0), ("tench, Tinca tinca", 0),
    ("maillot, tank suit", 639), ("Cardigan Welsh corgi", 264), ("crane (n03126707)", 517)])
def test_a_folder_of_imagenet_goes_by_wordnet_id_number_or_any_name_of_one_class(imagenet, tmp_path, folder, index):
    picture("ant").save((tmp_path / folder).mkdir() or tmp_path / folder / "0.png")
    assert ImageSet(imagenet, tmp_path).labels([0]).tolist() == [index]


@pytest.mark.parametrize(("folder", "named"), [
    ("crane", r"134 \(n02012849, crane\) and 517 \(n03126707, crane\)"),
    ("cardigan", r"264 \(n02113186, Cardigan, Cardigan Welsh corgi\) and 474 \(n02963159, cardigan\)"),
    ("maillot", r"638 \(n03710637, maillot\) and 639 \(n03710721, maillot, tank suit\)")])
def test_a_folder_whose_name_fits_two_classes_is_refused_with_both(imagenet, tmp_path, folder, named):
    picture("ant").save((tmp_path / folder).mkdir() or tmp_path / folder / "0.png")
    with pytest.raises(VitvizError, match=f"'{folder}' fits 2 classes of the model: {named}. Name its folder by WordNet id"):
        ImageSet(imagenet, tmp_path).labels([0])


def test_a_models_own_repeated_names_are_told_apart_by_position_only(tiny_vit, tmp_path):
    model = VisionModel(tiny_vit.module, "cranes", 32, class_names=["bird", "crane", "machine", "Crane"])
    items = Zoo(6, ["bird", "crane", "machine", "Crane"])
    assert ImageSet(model, items).labels(range(6)).tolist() == [1, 2, 0, 1, 2, 0]
    with pytest.raises(VitvizError, match=r"1 \(crane\) and 3 \(Crane\). Name its folder by number"):
        ImageSet(model, Zoo(3, ["crane", "bird", "machine"])).labels([2])


@pytest.mark.parametrize("label", [3, -1, "ant", 1.5, None])
def test_a_label_that_is_no_class_of_the_data_set_is_refused(tiny_vit, label):
    class Mislabeled(Zoo):
        def __getitem__(self, i: int):
            return picture("ant"), label

    with pytest.raises(VitvizError, match="The class of item 0 of Mislabeled is a whole number from 0 to 2"):
        ImageSet(tiny_vit, Mislabeled())


# What is refused


@pytest.mark.parametrize(("images", "message"), [
    (EmojiWorld(size=24), r"tiny-vit sees 32 px; make the world with EmojiWorld\(size=32\)"),
    (torch.rand(4, 3, 24, 24), r"shape \(N, 3, 32, 32\) in \[0, 1\], got shape \(4, 3, 24, 24\)"),
    (torch.rand(0, 3, 32, 32), r"At least one image .* \(0, 3, 32, 32\)"),
    (torch.zeros(4, 3, 32, 32, dtype=torch.uint8), r"floats of shape .* got Tensor of torch.uint8"),
    (torch.rand(4, 3, 32, 32) * 255, "Divide 0-255 images by 255"),
    (torch.randn(4, 3, 32, 32) * 2, "not normalized"),
    (torch.rand(4, 3, 32, 32).index_fill(0, torch.tensor([2]), float("nan")), "NaN is no pixel"),
    (torch.rand(4, 3, 32, 32).index_fill(0, torch.tensor([2]), float("inf")), "got .* to inf"),
    ([torch.rand(3, 32, 32)], "got list"),
    (np.zeros((4, 3, 32, 32), np.float32), "got ndarray"),
    ("", "path is a path"),
    ("no such folder", "no such folder does not exist"),
    (3, "got int"),
    (Zoo(0), "The data set Zoo is empty"),
])
def test_other_images_are_refused_with_what_is_taken(tiny_vit, images, message):
    with pytest.raises(VitvizError, match=message):
        ImageSet(tiny_vit, images)


@pytest.mark.parametrize("images", [None, torch.rand(4, 3, 32, 32), Zoo(4)])
@pytest.mark.parametrize("n", [0, -1, 2.5, "3", 10**9, True])
def test_a_number_of_images_out_of_range_is_refused(tiny_vit, images, n):
    with pytest.raises(VitvizError, match="n is a whole number from 1 to"):
        ImageSet(tiny_vit, images, n)


@pytest.mark.parametrize("numbers", [[4], [-1], 2, [0.5], "0"])
def test_numbers_of_images_that_are_not_there_are_refused(tiny_vit, numbers):
    for images in (torch.rand(4, 3, 32, 32), EmojiWorld(size=32), Zoo(4)):
        with pytest.raises(VitvizError, match="numbers are whole numbers from 0 to 3"):
            ImageSet(tiny_vit, images, 4).batch(numbers)


def test_something_that_is_no_model_is_refused():
    with pytest.raises(VitvizError, match="for a model, .* got str"):
        ImageSet("emoji-vit")


@pytest.mark.parametrize("item", [(torch.rand(3, 32, 32), 0), (picture("ant"),), picture("ant"), None,
                                  (picture("ant"), (0, torch.rand(32, 32)))])
def test_a_data_set_of_other_items_is_refused_with_what_to_do(tiny_vit, item):
    class Transformed(Zoo):
        def __getitem__(self, i: int):
            return item

    with pytest.raises(VitvizError, match="item 0 of Transformed has a .* without transforms"):
        ImageSet(tiny_vit, Transformed())


def test_a_derangement_gives_every_image_another_and_each_once():
    orders = [derangement(16, seed) for seed in range(20)]
    assert all(sorted(order.tolist()) == list(range(16)) and (order != torch.arange(16)).all() for order in orders)
    assert torch.equal(derangement(16, 3), orders[3]) and len({tuple(order.tolist()) for order in orders}) == 20
    with pytest.raises(VitvizError, match="n is a whole number from 2"):
        derangement(1, 0)


def test_classes_of_images_are_their_own_whatever_the_model_predicts(tiny_vit, tmp_path):
    for name in ("owl", "ant"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "0.png")
    folder = ImageSet(tiny_vit, tmp_path)
    assert folder.classes == ["ant", "owl"] and folder.class_of([1, 0]).tolist() == [1, 0]
    tiny_vit.class_names = None
    assert folder.class_of(range(2)).tolist() == [0, 1]
    world = vv.EmojiWorld("val", size=32)
    scenes = ImageSet(tiny_vit, world, 16)
    assert scenes.classes == world.concepts and torch.equal(scenes.class_of(range(16)), world.batch(range(16)).concept.long())
    with pytest.raises(VitvizError, match="have none"):
        ImageSet(tiny_vit, torch.rand(2, 3, 32, 32)).class_of([0])
