"""Figures that several subpackages draw: grids of small images, and what models predict for an image.

``image_grid``: ``Tile`` and ``contact_sheet`` (images with captions in rows), ``stack``, ``with_map`` (an activation map over
an image), and the PNG and alternative text that notebooks display. ``prediction_bars``: ``predict`` (top-1 label and rank of
the true class), drawn for several models as ``prediction_bars`` or ``prediction_sheet``. Curves and bars are ``Result.plot()``'s.
"""
