"""The top command: finds the others, and turns every error into one line and an exit code."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, NoReturn

import click

from afmi.cli.interrupts import interruptible
from afmi.cli.terminal import echo
from afmi.errors import AfmiError, near_matches

__all__ = ["DEBUG", "INTERRUPTED", "UNUSABLE", "AfmiGroup", "debug_option"]

UNUSABLE = 2
"""Exit code: the command or its options cannot be used."""
INTERRUPTED = 130
"""Exit code: stopped by Ctrl-C (128 + SIGINT, as shells have it)."""
DEBUG = "afmi.debug"
"""Where ``ctx.meta`` keeps whether errors shall show their traceback."""


def _set_debug(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.meta[DEBUG] = True


# Also behind the command, where it is typed when the command has just failed.
debug_option = click.option(
    "--debug", is_flag=True, hidden=True, expose_value=False, callback=_set_debug
)


class AfmiGroup(click.Group):
    """A click group whose errors are one line on stderr: what came, near matches, what to do."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order that a newcomer meets them, not the alphabet's."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is answered with near matches."""
        word = args[0]
        if word.startswith("-") or self.get_command(ctx, word) is not None:
            return super().resolve_command(ctx, args)
        commands = self.list_commands(ctx)
        hint = near_matches(word, commands) or f"; there are {', '.join(commands)}"
        # `afmi dog.jpg` is what one types first.
        if os.path.exists(word) or any(sign in word for sign in "./*"):
            hint = f"; did you mean `{ctx.command_path} explain {word}`?"
        raise click.UsageError(f"no command is called {word!r}{hint}", ctx)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; whatever goes wrong becomes an error that click knows."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except AfmiError as error:
            _refuse(ctx, error, str(error))
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            _refuse(ctx, error, f"unexpected {what[:500]} (--debug shows where)")

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        """Run the command line; exit with its code, or return it out of standalone mode."""
        for stream in (sys.stdout, sys.stderr):
            # A label or file name that the terminal cannot show must not stop the work.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            with interruptible():
                code = super().main(*args, standalone_mode=False, **kwargs)
        except click.ClickException as error:
            echo(f"afmi: {_one_line(error)}", err=True)
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            echo("afmi: interrupted", err=True)
            code = INTERRUPTED
        code = code if isinstance(code, int) else 0
        if standalone_mode:
            sys.exit(code)
        return code


class _Refusal(click.ClickException):
    """The message of an error, for the user."""

    exit_code = UNUSABLE


def _refuse(ctx: click.Context, error: Exception, message: str) -> NoReturn:
    if ctx.meta.get(DEBUG):
        raise error
    raise _Refusal(message) from error


def _one_line(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split())
    if not isinstance(error, click.UsageError):
        return text
    # click writes sentences; ours are clauses behind "afmi:".
    text = (text[:1].lower() + text[1:]).rstrip(".")
    ctx = error.ctx
    if isinstance(error, click.NoSuchOption) and ctx is not None:
        known = [name for option in ctx.command.get_params(ctx) for name in option.opts]
        near = near_matches(error.option_name, [name for name in known if name.startswith("--")], 3)
        text = f"no option is called {error.option_name!r}{near}"
    return f"{text} (see `{ctx.command_path} --help`)" if ctx is not None else text
