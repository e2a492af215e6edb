"""What a call asks for: neurons by number, classes by name, directions by their weights; each from seeds of its own."""

import pytest
import torch

from vitviz_nb.models.sites import Site, find_site
from vitviz_nb.utils import validate
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize.request import images_of

LOGITS = Site("logit", 0, 4, 0, None, "", 0)  # of tiny_vit's ants, bees, cats and dogs


def test_neurons_are_numbered_and_variants_have_the_seeds_that_follow(tiny_vit):
    assert images_of(tiny_vit, find_site(tiny_vit), [5, 2], 7, 1) == ([(5, 7), (2, 7)], None, None)
    images, _, labels = images_of(tiny_vit, find_site(tiny_vit), [5, 2], 7, 2)
    assert images == [(5, 7), (5, 8), (2, 7), (2, 8)]
    assert labels == ["neuron 5, variant 1", "neuron 5, variant 2", "neuron 2, variant 1", "neuron 2, variant 2"]


@pytest.mark.parametrize("classes", [["cat", "ant"], [2, "ant"], [2, 0], torch.tensor([2, 0])])
def test_classes_are_named_or_numbered_and_labeled_by_their_names(tiny_vit, classes):
    assert images_of(tiny_vit, LOGITS, classes, 0, 1) == ([(2, 0), (0, 0)], None, ["cat", "ant"])
    assert images_of(tiny_vit, LOGITS, "cat", 0, 1)[2] == ["cat"]


def test_a_class_that_there_is_not_is_answered_with_the_nearest(tiny_vit):
    with pytest.raises(VitvizError, match="A class is one of ant, bee, cat, dog; got 'cats'. Did you mean cat"):
        images_of(tiny_vit, LOGITS, ["cats"], 0, 1)
    with pytest.raises(VitvizError, match="named by whole numbers"):
        images_of(tiny_vit, find_site(tiny_vit), ["cat"], 0, 1)


def test_of_many_names_a_message_lists_the_first_few_and_the_nearest():
    many = [*(f"class {i}" for i in range(100)), "owl"]
    with pytest.raises(VitvizError, match="A class is one of 101: class 0, class 1, class 2, …; got 'owls'. Did you mean owl"):
        validate.choice("A class", "owls", many)


def test_a_direction_has_the_same_number_whatever_it_is_asked_for_with(tiny_vit):
    site, weights = find_site(tiny_vit), torch.randn(2, 128)
    both, alone = images_of(tiny_vit, site, weights, 0, 1), images_of(tiny_vit, site, weights[1:].double().numpy(), 3, 1)
    assert both[0][1][0] == alone[0][0][0] >= 2**47 and both[0][0][0] != both[0][1][0]
    assert torch.equal(both[1], weights) and both[2][1] == alone[2][0] and alone[0][0][1] == 3
