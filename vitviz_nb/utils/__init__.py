"""What every subpackage uses, and nothing about models or images in particular.

``errors`` (VitvizError), ``validate`` (arguments of public functions), ``files`` (the one way to write), ``cache`` (computed
arrays, kept under the model's state), ``paths``, ``random_streams`` (reproducible numbers by hashing), ``statistics``
(intervals, correlation, selectivity, variance explained), ``spectrum`` (spatial frequencies), ``memory``.
"""
