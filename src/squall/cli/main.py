"""`squall`: reads the command line and answers with an exit status.

What is fast must stay fast: nothing here, and nothing at the top of a verb's file, loads torch; help, lists and a
user's mistakes are answered in a fraction of a second. A mistake prints one message and no traceback; an exception that
nobody foresaw keeps its traceback, because it is a bug of ours.

    argv -> main -> verb -> squall.training / squall.explain / ... -> exit status
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from squall.cli import data, doctor, explain, look, recipes, report, resume, runs, train, verify, voices
from squall.cli.processes import RanksFailed
from squall.cluster.place import Place
from squall.engine.report import REPORTS
from squall.engine.spmd import as_rank
from squall.errors import InputError, SquallError
from squall.stdout import mute
from squall.version import own_version

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells give it: 128 + SIGINT."""

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""The base of all errors in flags and arguments (typer carries its own click, or uses the installed one)."""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


HELP = (
    "Trains PyTorch networks on many processes and keeps the accuracy, and the bits, of the one-device recipe.\n\n"
    "TARGET is a shipped recipe (squall recipes), a .toml file, or a .py file that defines task; RUN is a run's "
    "folder, its name under runs/, or last. What changes the result is a bare key=value; what changes only where it "
    "runs is a --flag."
)


@app.callback(invoke_without_command=True, help=HELP)
def _squall(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Prints the help where no verb is given."""
    if version:
        print(f"squall {own_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


app.command("train", rich_help_panel="Run")(train.train)
app.command("resume", rich_help_panel="Run")(resume.resume)
app.command("eval", rich_help_panel="Run")(look.evaluate)
app.command("export", rich_help_panel="Run")(look.export)
app.command("explain", rich_help_panel="Before")(explain.explain)
app.command("verify", rich_help_panel="Trust")(verify.verify)
app.command("report", rich_help_panel="Look")(report.report)
app.add_typer(runs.app, name="runs", rich_help_panel="Look")
app.command("recipes", rich_help_panel="Set up")(recipes.recipes)
app.add_typer(data.app, name="data", rich_help_panel="Set up")
app.command("doctor", rich_help_panel="Set up")(doctor.doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Arguments:
        arguments: without the program's name; by default those of this process.

    Returns:
        The exit status: 0; 1 for a run or user's code that failed; 2 for a mistake in what was given; 130 after Ctrl-C.
    """
    if REPORTS in os.environ:  # a rank of a launch: its launcher prints
        return as_rank(lambda: _run(arguments))
    place = voices.job()
    if place is not None:
        voices.quiet_torch()
    try:
        return _run(arguments)
    except RanksFailed as failed:
        return failed.status
    except KeyboardInterrupt:
        if place is None or place.rank == 0:
            print("squall: stopped by Ctrl-C", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone: squall recipes | head -1
        mute()
        return 1
    except Exception as error:
        if place is not None:
            return voices.say(error, place, _text(error, place))
        if not isinstance(error, SquallError):
            raise
        voices.tell(error.render())
        return error.exit_status


def _text(error: Exception, place: Place) -> str:
    """An error of a rank as it is printed: with its number where it is not that of all ranks."""
    rank = f"rank {place.rank} of {place.size}" if place.rank else ""
    if not isinstance(error, SquallError):
        return f"squall: {rank or 'rank 0'} failed\n{''.join(traceback.format_exception(error)).rstrip()}"
    if rank and rank not in error.headline:
        named = SquallError(f"{error.headline}, {rank}", error.rows, error.hint)
        named.exit_status = error.exit_status
        return named.render()
    return error.render()


def _run(arguments: Sequence[str] | None) -> int:
    try:
        status = app(args=None if arguments is None else list(arguments), prog_name="squall", standalone_mode=False)
    except UsageError as error:
        raise _usage(error) from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    if status == INTERRUPTED:  # typer's forms of Ctrl-C: this one, or Abort
        raise KeyboardInterrupt
    return status if isinstance(status, int) else 0


def _usage(error: BaseException) -> InputError:
    """typer's complaint about flags and arguments in our manner."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "squall"
    text = str(getattr(error, "format_message", error.__str__)()).strip().rstrip(".")
    return InputError(text[:1].lower() + text[1:], [], f"all flags: {command} --help")
