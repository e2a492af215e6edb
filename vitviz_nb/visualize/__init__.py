"""Feature visualization: images that maximally activate neurons, what they score, and atlases of whole layers.

- ``Visualizer(model, recipe).render(layer, neurons)``: activation maximization, scored and cached; ``stream`` to watch it form.
- ``Recipe``: its settings, ``Recipe.paper()``, ``Recipe.fourier()`` or, whichever suits a model, ``Recipe.quick(model)``.
- ``Rendering``: the pictures with all that is known of them; shows itself, ``save`` and ``load`` keep it.
- ``top_images(model, layer, neuron)``: the reference images that activate a neuron most.
- ``Atlas.open(folder)``: precomputed feature visualizations, by ``atlas_maker.make_atlas`` or ``vitviz atlas``.
- ``scores``: activations over reference images. ``optimize.Adam``: the optimizer on pixels, for any loss.
"""
