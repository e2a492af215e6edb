"""Training of the embedded models on Emoji World, on a CPU in minutes to hours: ``vitviz train NAME``.

``recipes``: ``Training``, how a model is trained; embedded models have it in their cards. ``loop``: ``train``, from a recipe
to weights and card, with checkpoints, and ``accuracy``, by difficulty and style. Beside them ``pgd`` (L2-bounded adversarial
perturbations), ``dense_supervision`` (every patch token predicts the class), ``captions`` (CLIP's loss) and ``muon``.
"""
