"""Pictures put together keep their pixels."""

import numpy as np
from PIL import Image

from vitviz_nb.plotting.image_grid import stack


def test_stacked_images_keep_their_order_and_pixels_and_lie_on_white():
    red, blue = Image.new("RGB", (3, 2), "red"), Image.new("RGB", (5, 4), "blue")
    whole = np.asarray(stack([red, blue]))
    assert whole.shape == (6, 5, 3)
    assert (whole[:2, :3] == (255, 0, 0)).all() and (whole[:2, 3:] == 255).all() and (whole[2:] == (0, 0, 255)).all()
