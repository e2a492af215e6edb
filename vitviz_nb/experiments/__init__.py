"""Experiments: one module a finding of the paper, each of whose functions measures it on any model and returns a ``Result``.

- ``result``: ``Result``, a table of numbers with 95 % intervals; ``published``: the paper's tables as such
- obstacles: ``regularizers`` (noise, adversarial examples), ``units`` (queries, keys, values or MLP neurons)
- findings: ``progression``, ``localization``, ``class_token``, ``background``, ``frequency``, ``semantics``; ``classification``
- ``families``: all of them by architecture
- trust: ``faithfulness`` (selectivity, cross-model recognition), ``fooling_circuit``, ``inversion``

Their signature is ``experiment(model, images=None, *, layer=-1, kind=None, n=…, seed=0)``, as far as each argument makes sense;
``images`` is what an ``ImageSet`` takes, ``kind=None`` the model's own.
"""
