"""What every room uses, and nothing of what the kit is about.

``errors`` (VitvizError), ``validate`` (arguments of public functions), ``files`` (the one way to write), ``cache`` (computed
arrays, kept under the model's state), ``paths``, ``random_streams`` (reproducible numbers by hashing), ``statistics``
(intervals, correlation, selectivity, variance explained), ``spectrum`` (spatial frequencies), ``memory``.
"""
