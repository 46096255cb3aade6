"""`assistq`: the entry point, and the one place that turns errors into one line and a status."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import click
from rich.markup import escape

from producer.cli import assistants, batches, run, submit, threads, up, webhooks
from producer.cli.console import err
from schemas.errors import AssistqError

EXIT_ERROR = 1


class Terminated(BaseException):
    """SIGTERM arrived."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="assistq")
def cli() -> None:
    """Run batches of assistant (LLM) jobs under a provider's quota.

    Exit status 0: what was asked was done. 1: it was not, and why stands on the error
    output. 2: the command line is wrong. 3: done, but some rows did not succeed. 4: stopped
    at a wall (provider, key, model); every job is kept and the same command goes on.
    """


cli.add_command(run.run)
cli.add_command(submit.submit)
cli.add_command(batches.status)
cli.add_command(batches.results)
cli.add_command(assistants.assistants)
cli.add_command(threads.threads)
cli.add_command(webhooks.webhooks)
cli.add_command(up.up)


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = cli.main(standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        status = exc.exit_code
    except AssistqError as exc:
        err.print(f"[bold red]error:[/] {_escaped(exc)}", highlight=False, soft_wrap=True)
        status = EXIT_ERROR
    except (KeyboardInterrupt, click.Abort):
        status = 128 + signal.SIGINT
    except Terminated:
        status = 128 + signal.SIGTERM
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does; Python would complain at its exit.
        sys.stderr.close()
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def _terminate(_signum: int, _frame: FrameType | None) -> None:
    raise Terminated


def _escaped(exc: AssistqError) -> str:
    return escape(str(exc))
