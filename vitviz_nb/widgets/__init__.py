"""Widgets for notebooks: controls that drive the kit and show what comes back on the page.

- ``explorer``: ``vv.explore(model)``, sliders for layer and neuron, whose images are shown as they form, A beside B on request;
  ``explorer_side`` is A or B, ``finding`` which neurons are the most selective or show a concept.
- ``browser``: ``vv.browse(atlas)``, thumbnails of an atlas's neurons, also as a page for a website (``vitviz gallery``).
- ``interactive``: ``vv.interactive(draw, **controls)``, any function that returns an image, with a control for each argument.
- ``two_alternative``: the two-alternative forced-choice task (Borowski et al. 2021), for people and for players made of code.
- ``elements``: what these share.

All of them work on ipywidgets 8 and 7 (Colab), with mouse and keyboard, and show errors as one sentence in their status line.
"""
