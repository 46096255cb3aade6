"""`assistq threads`: conversations, as they are stored."""

from __future__ import annotations

import click
from rich.text import Text

from producer.cli import access
from producer.cli.console import out, print_json, shown
from producer.records import Records
from schemas.chat import Message
from schemas.settings import Settings


@click.group()
def threads() -> None:
    """Look at threads."""


@threads.command()
@click.argument("thread_id", metavar="ID")
@click.option("--workspace", help="Whose thread, if several workspaces have one of this id.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(thread_id: str, *, workspace: str | None, as_json: bool) -> None:
    """Print the messages of thread ID in order."""
    with access.database(Settings.from_env()) as engine:
        messages = Records(engine).thread(thread_id, workspace=workspace)
    if as_json:
        print_json(
            [
                {
                    "position": each.position,
                    "role": each.role,
                    "content": each.content,
                    "message": each.message,
                    "job_id": each.job_id,
                    "created_at": each.created_at,
                }
                for each in messages
            ]
        )
        return
    for each in messages:
        message = Message.model_validate(each.message)
        calls = "".join(f"→ {call.name}({call.arguments})" for call in message.tool_calls)
        said = " ".join(part for part in (each.content, calls) if part)
        out.print(Text.assemble((f"{each.role}: ", "bold"), shown(said)), soft_wrap=True)
