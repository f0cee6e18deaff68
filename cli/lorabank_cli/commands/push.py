"""``lorabank push``."""

from __future__ import annotations

import click

from lorabank.core.escaping import safe
from lorabank_cli.completion import complete_names
from lorabank_cli.render.output import plain
from lorabank_cli.render.text import pairs, size, table
from lorabank_cli.verb import Run, verb


@verb(
    "push",
    dry_run=True,
    examples=(
        "push me/my-bank --dry-run",
        "push me/sentiment --task sentiment --license apache-2.0",
        "push me/both --composition both --dataset stanfordnlp/imdb --public",
    ),
)
@click.argument("repository", help="OWNER/NAME on the hub; made if it does not exist.")
@click.option("--task", shell_complete=complete_names, help="Send only this task, as a PEFT folder.")
@click.option("--composition", shell_complete=complete_names, help="Send only this composition, if it is one adapter.")
@click.option("--license", help="For the model card, as the hub spells it, such as apache-2.0.")
@click.option("--dataset", multiple=True, metavar="OWNER/NAME", help="Data set for the model card; may be repeated.")
@click.option("--public", is_flag=True, help="Let everybody see the repository; default: private.")
def push(
    run: Run,
    repository: str,
    task: str | None,
    composition: str | None,
    license: str | None,
    dataset: tuple[str, ...],
    public: bool,
) -> None:
    """Send the bank, a task or a composition to a repository on the hub.

    It is one commit, with a model card that holds base model, labels, results and the forgetting matrix. A whole bank
    goes with the rows that it keeps of its tasks. The hub's token is the one of 'hf auth login' or HF_TOKEN.
    """
    from lorabank import api

    result = api.push(
        run.bank,
        repository,
        task=task,
        composition=composition,
        license=license,
        datasets=dataset,
        public=public,
        dry_run=run.dry_run,
        observer=run.observer,
    )
    total = sum(result.files.values())
    facts = pairs(
        [
            ("files", f"{len(result.files)}, {size(total)}"),
            ("a new repository", "private" if result.private else "public"),
            ("commit", result.commit),
        ]
    )
    if run.dry_run:
        listing = table(("file", "size"), [(path, size(count)) for path, count in result.files.items()])
        text = f"would send {safe(result.what)} to {safe(repository)}\n{facts}\n\n{listing}"
    else:
        text = f"sent {safe(result.what)} to {safe(repository)}\n{facts}"
    run.output.data({"dry_run": run.dry_run, **plain(result)}, text)
