"""Figures that several subpackages draw: grids of small images, and what models predict for an image.

``image_grid``: ``Tile`` and ``contact_sheet`` (images with captions in rows), ``stack``, ``with_map`` (an activation map over
an image). ``alt_text``: what notebooks display, as HTML with alternative text. ``prediction_bars``: ``predict`` (top-1 label and
rank of the true class), drawn for several models as ``prediction_bars`` or ``prediction_sheet``. Curves and bars are
``Result.plot()``'s.
"""

from .alt_text import describe_outputs

describe_outputs()
