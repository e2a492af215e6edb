"""Statistics, against numbers worked out by hand."""

import numpy as np
import pytest
import torch

from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.utils.statistics import ClassSums, class_selectivity, pearson, variance_explained, wilson

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
ACTIVATIONS = torch.tensor([[1.0, 5], [1, 5], [3, 5], [3, 5], [5, 5], [5, 5], [7, 5], [7, 5]])  # the second never varies


@pytest.mark.parametrize(("hits", "n", "low", "high"), [(0, 0, 0, 1), (0, 10, 0, 0.2775), (5, 10, 0.2366, 0.7634)])
def test_wilsons_interval_is_the_published_one(hits: int, n: int, low: float, high: float):
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_pearsons_r_is_numpys_column_by_column_and_0_for_a_constant():
    first, second = torch.randn(30, 3), torch.randn(30, 3)
    first[:, 2] = 4
    expected = [np.corrcoef(first[:, i], second[:, i])[0, 1] for i in (0, 1)]
    assert pearson(first, second).tolist() == pytest.approx([*expected, 0], abs=1e-5)


def test_class_selectivity_is_the_distance_of_the_class_mean_in_standard_deviations_over_all_images():
    # means 2 and 6, of all 4; variance (9 + 9 + 1 + 1 + 1 + 1 + 9 + 9) / 8 = 5
    assert torch.allclose(class_selectivity(ACTIVATIONS, LABELS, 2), torch.tensor([[-2 / 5**0.5, 0], [2 / 5**0.5, 0]]))


def test_a_class_of_fewer_than_four_images_has_no_selectivity():
    scores = class_selectivity(ACTIVATIONS, torch.tensor([0, 0, 0, 0, 1, 1, 1, 2]), 4)
    assert scores[1:].tolist() == [[-float("inf")] * 2] * 3


def test_epsilon_squared_by_hand():
    # Within labels 8 · 1 / (8 - 2), in all 8 · 5 / (8 - 1): 1 - (4 / 3) / (40 / 7)
    assert variance_explained(ACTIVATIONS, LABELS).tolist() == pytest.approx([1 - 28 / 120, 0])


def test_labels_explain_nothing_of_noise_however_many_there_are_and_all_of_themselves():
    labels, noise = torch.arange(2000) % 250, torch.randn(2000, 200)
    concept = torch.randn(250, 200)[labels]
    assert variance_explained(noise, labels).mean().item() == pytest.approx(0, abs=0.01)
    assert variance_explained(concept, labels).mean().item() == pytest.approx(1, abs=1e-5)
    assert variance_explained(noise + concept, labels).mean().item() == pytest.approx(0.5, abs=0.02)


def test_a_large_mean_hides_no_small_variation():
    assert class_selectivity(ACTIVATIONS + 1000, LABELS, 2)[1, 0].item() == pytest.approx(2 / 5**0.5, rel=1e-4)


def test_images_may_come_in_batches():
    sums = ClassSums(2, 2)
    for part in torch.randperm(8).split(3):
        sums.add(ACTIVATIONS[part], LABELS[part])
    assert torch.allclose(sums.selectivity(), class_selectivity(ACTIVATIONS, LABELS, 2))
    assert torch.allclose(sums.variance_explained(), variance_explained(ACTIVATIONS, LABELS))


def test_a_label_for_each_image_explains_nothing_that_can_be_measured():
    with pytest.raises(VitvizError, match="label of its own"):
        variance_explained(torch.randn(5, 3), torch.arange(5))
