"""Training of the embedded models on Emoji World, on a CPU in minutes to hours: ``vitviz train NAME``.

``recipes``: ``Training`` and ``TRAININGS``, how each embedded model is trained. ``loop``: ``train``, from a recipe to weights and
card, with checkpoints, and ``accuracy``, by difficulty and style. Beside them ``pgd`` (L2-bounded adversarial perturbations),
``dense_supervision`` (every patch token predicts the class) and ``muon`` (the optimizer).
"""
