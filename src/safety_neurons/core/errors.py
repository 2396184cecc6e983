"""Errors that a user can do something about."""


class SafetyNeuronsError(Exception):
    """An expected failure, such as bad input, a missing file or an unsupported model.

    The message says what was wrong, with which input, and what to do. The command line prints it without a traceback
    and exits with code 2. `shared`: all processes of a run failed together.
    """

    shared = False


class DivergedError(SafetyNeuronsError):
    """Training diverged (NaN or inf)."""


class CannotRunError(SafetyNeuronsError):
    """An attack, defense or judge needs something that this engine or run does not provide."""


class NotFiniteError(SafetyNeuronsError):
    """The model computes NaN or inf."""
