"""Commands that errors and results propose: words, which are made a line for the shell in one place."""

from __future__ import annotations


class Command(tuple[str, ...]):
    """A command of lorabank, to be typed next: the words behind ``lorabank``.

    Which bank it is about is not said here: whoever shows it knows how this call named the bank. A word in capitals
    (``FILE``, ``NAME``) stands for what the user alone can know.
    """

    __slots__ = ()

    def __new__(cls, *words: str) -> Command:  # noqa: D102  (the class says it)
        return super().__new__(cls, words)

    def __getnewargs__(self) -> tuple[str, ...]:
        return tuple(self)

    def line(self, bank: str | None = None) -> str:
        """What can be pasted into a shell.

        Args:
            bank: The bank of this call where it is not the one that is taken by default.
        """
        import shlex

        return shlex.join(("lorabank", *(self if bank is None else self.about(bank))))

    def about(self, bank: str) -> Command:
        """The same command for a bank, unless it names one already or only asks for help."""
        return self if {"-b", "--bank", "--help"} & set(self) else Command("-b", bank, *self)

    def __str__(self) -> str:
        return self.line()


ADD_TASK = Command("add-task", "NAME", "--data", "FILE")
LIST = Command("list")
VERIFY = Command("verify", "--full")
