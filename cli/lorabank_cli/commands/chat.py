"""``lorabank chat``."""

from __future__ import annotations

import sys

from lorabank.core.config import SamplingConfig
from lorabank.core.settings import setting_names
from lorabank.workflows.asking.chat_config import ChatConfig
from lorabank_cli.verb import Run, verb

SAMPLING = setting_names(SamplingConfig)
ANSWERING = [name for name in setting_names(ChatConfig) if name not in SAMPLING]


@verb(
    "chat",
    configs={"Answering": ChatConfig, "Sampling": ChatConfig},
    fields={"Answering": ANSWERING, "Sampling": SAMPLING},
    examples=(
        "chat",
        "chat --task summaries --temperature 0.7 --top-p 0.9",
        "chat --composition routed --system 'Answer in one sentence.'",
        "chat --task none",
        "chat --task summaries --json < prompts.txt",
    ),
)
def chat(run: Run) -> None:
    """Talk with the bank's language model.

    Answers come word by word, from a composition, a task or, with --task none, the bare base. A task that learnt
    conversations reads what was said before. /help lists the commands, such as /task NAME and /who; Ctrl-C stops an
    answer. If standard input is not a terminal, the command reads one question per line and prints only the answers,
    with --json one object for each.
    """
    from lorabank import api
    from lorabank_cli.conversation import Conversation, answer_lines

    config = run.config(ChatConfig)
    with run.observer as observer:
        talk = api.chat(run.bank, config, observer=observer)
    if sys.stdin.isatty() and not run.output.json:
        Conversation(run, talk).hold()
    else:
        answer_lines(run, talk)
