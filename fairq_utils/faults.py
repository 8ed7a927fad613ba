"""What a user can mend: errors that the command line says in one sentence, without a traceback."""

from __future__ import annotations


class Fault(RuntimeError):
    """Something went wrong that the message names, with the place and the way out."""

    exit_code = 1


class BadInput(Fault, ValueError):
    """What was given cannot be used; nothing was computed or written."""

    exit_code = 2
