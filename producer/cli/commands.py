"""All commands, and the one place that turns errors into one line and a status."""

from __future__ import annotations

import traceback

import click
from rich.text import Text

from producer.cli import assistants, batches, keys, lanes, prune, run, spend, submit, threads, up, webhooks
from producer.cli.console import err, shown
from schemas.errors import AssistqError
from schemas.settings import Settings

EXIT_ERROR = 1


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
cli.add_command(batches.retry)
cli.add_command(lanes.pause)
cli.add_command(lanes.resume)
cli.add_command(lanes.cancel)
cli.add_command(lanes.lanes)
cli.add_command(spend.spend)
cli.add_command(assistants.assistants)
cli.add_command(threads.threads)
cli.add_command(webhooks.webhooks)
cli.add_command(keys.keys)
cli.add_command(prune.prune)
cli.add_command(up.up)


def run_command() -> int:
    """Run the command that the arguments name and return the exit status; signals pass through."""
    try:
        return int(cli.main(prog_name="assistq", standalone_mode=False) or 0)
    except click.exceptions.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except AssistqError as exc:
        _tell(str(exc))
    except BrokenPipeError:
        raise
    except OSError as exc:
        _tell(f"{exc.strerror or exc}{f': {exc.filename}' if exc.filename else ''}")
        _trace()
    except Exception as exc:  # noqa: BLE001 - a user is told in one line also of what nobody foresaw
        _tell(f"a fault of assistq: {type(exc).__name__}: {exc}; ASSISTQ_LOG_LEVEL=DEBUG shows where")
        _trace()
    return EXIT_ERROR


def _tell(text: str) -> None:
    err.print(Text.assemble(("error: ", "bold red"), shown(text)), soft_wrap=True)


def _trace() -> None:
    if Settings.from_env().log_level == "DEBUG":
        err.print(traceback.format_exc(), soft_wrap=True)
