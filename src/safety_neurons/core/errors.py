"""Errors for failures that a user can mend."""


class SafetyNeuronsError(Exception):
    """An expected failure: bad input, a missing file, a model we cannot read.

    The message is one paragraph that says what was wrong, with which input, and what to do next.
    The library raises it; the command line prints it without a traceback and exits with code 2.
    """


class DivergedError(SafetyNeuronsError):
    """Training diverged (NaN or inf): the learning rate is too high."""


class CannotRunError(SafetyNeuronsError):
    """An attack, defense or judge needs something that this engine or run does not have."""
