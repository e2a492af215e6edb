"""Images in a grid keep their pixels and their order."""

import numpy as np
import torch
from PIL import Image

from vitviz_nb.plotting.image_grid import Tile, contact_sheet, stack, with_map


def test_stacked_images_keep_their_order_and_pixels_and_lie_on_white():
    red, blue = Image.new("RGB", (3, 2), "red"), Image.new("RGB", (5, 4), "blue")
    whole = np.asarray(stack([red, blue]))
    assert whole.shape == (6, 5, 3)
    assert (whole[:2, :3] == (255, 0, 0)).all() and (whole[:2, 3:] == 255).all() and (whole[2:] == (0, 0, 255)).all()


def test_a_sheet_shows_its_tiles_row_by_row():
    colors = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4)
    sheet = np.asarray(contact_sheet([Tile(color, []) for color in colors], "", side=20, columns=2))
    centers = [tuple(sheet[y, x]) for y, x in ((4 + 10, 8 + 10), (4 + 10, 36 + 10), (4 + 28 + 10, 8 + 10))]
    assert centers == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert contact_sheet([], "nothing").width > 0


def test_a_map_runs_from_dark_blue_at_its_minimum_to_yellow_at_its_maximum():
    shown = with_map(torch.full((3, 4, 4), 0.5), torch.tensor([[2.0, 2.0], [2.0, 6.0]]))
    low, high = shown[:, 0, 0], shown[:, 3, 3]
    assert low[2] > low[0] and high[0] > 2 * high[2]  # blue; red and green
    assert torch.equal(shown[:, 1, 1], low) and torch.equal(shown[:, 2, 2], high)


def test_labels_stand_left_of_rows_and_above_columns_and_move_the_images_as_far_as_they_need():
    tiles = [Tile(torch.full((3, 20, 20), 0.5), []) for _ in range(4)]
    plain = contact_sheet(tiles, "t", side=80, columns=2)
    labeled = contact_sheet(tiles, "t", side=80, columns=2, row_labels=["a", "neuron 376, as trained"], column_labels=["x", "y"])
    assert labeled.height > plain.height and labeled.width > plain.width
    pixels = np.asarray(labeled)
    first = (pixels == 128).all(2).any(0).argmax()  # the column where images begin
    dark = (pixels.max(2) < 100)
    assert not (pixels[:, first:first + 80] == 128).all(2)[:20].any()  # column labels are above the images
    assert dark[labeled.height // 2:, :first].any()  # the second row's label
    assert labeled.width - first == plain.width - 8  # nothing else moved
