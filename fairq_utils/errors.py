"""Errors that a user can mend: the command line says them in one sentence, and ends.

It ends with 0, or with one sentence and 1, 2 or 130.
"""

from __future__ import annotations

from collections.abc import Callable


class Fault(RuntimeError):
    """Something went wrong that the message names, with the place and the way out."""

    exit_code = 1


class BadInput(Fault, ValueError):
    """Input that cannot be used; nothing was computed or written."""

    exit_code = 2


def say_and_stop(action: Callable[[], None], kept: str = "every finished run is kept") -> None:
    """Run an action; what a user can mend is one sentence, not a traceback.

    Exit code 2 is input that cannot be used, 130 an interruption, 1 anything else.

    Parameters
    ----------
    action : callable
    kept : what an interruption leaves, as the same command goes on from there
    """
    import typer  # here, because it takes a fifth of a second

    try:
        action()
    except Fault as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        typer.echo(f"fairq: stopped; {kept}, the same command goes on", err=True)
        raise typer.Exit(130) from None
    except (FloatingPointError, OSError, ValueError) as error:
        typer.echo(f"fairq: {error}", err=True)
        raise typer.Exit(1) from error
