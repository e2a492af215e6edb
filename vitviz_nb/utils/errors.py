"""The one exception that the kit raises for what a user can fix."""

import difflib
from collections.abc import Iterable


class VitvizError(ValueError):
    """An error that a user can fix: the message says what was wrong, what is allowed and what to do next.

    The command line prints it on one line and exits with 2; a notebook shows it without a stack trace.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython prints instead of a stack trace (its documented hook for exceptions)."""
        return [f"{type(self).__name__}: {self}"]


class NotApplicable(VitvizError):
    """What was asked does not exist for this architecture (a CNN has no CLS token): a fact about it, not a failure."""


def nearest(word: str, allowed: Iterable[str], n: int = 3) -> str:
    """'Did you mean a, b?' with the up to ``n`` names closest to ``word``, or '' when none is close."""
    close = difflib.get_close_matches(word, list(allowed), n=n, cutoff=0.5)
    return f" Did you mean {', '.join(close)}?" if close else ""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line: the name of its type where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
