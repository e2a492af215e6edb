"""The course around the kit: what learners and teachers use beside the measurements.

``vv.setup()`` says what the machine has, ``vv.check(exercise, answer)`` checks an answer to an exercise of a notebook
(``checks``, one module a notebook), and ``vv.Report`` collects what was found in a folder to hand in.
"""
