"""Commands that errors and results propose: words, which are made a line for the shell in one place."""

from __future__ import annotations

from lorabank.core.escaping import safe


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
        return shell_line("lorabank", *(self if bank is None else self.about(bank)))

    def about(self, bank: str) -> Command:
        """The same command for a bank, unless it names one already or only asks for help."""
        return self if {"-b", "--bank", "--help"} & set(self) else Command("-b", bank, *self)

    def __str__(self) -> str:
        return self.line()


def shell_line(*words: str) -> str:
    """Words as a line that a POSIX shell reads as these words, and that is shown as it is: see `safe`."""
    return " ".join(map(_quoted, words))


def file_word(path: object) -> str:
    """A path as a word of another program's command: one that begins with a hyphen would be an option."""
    text = str(path)
    return f"./{text}" if text.startswith("-") else text


def _quoted(word: str) -> str:
    """A word in quotes where it needs them; characters that are not shown as they are stand there as octal bytes.

    A shell drops line ends at the end of such a word.
    """
    import shlex

    if safe(word) == word:
        return shlex.quote(word)
    octal = "".join(_octal(char) if char in "-\\%'" or safe(char) != char else char for char in word)
    return f"\"$(printf '{octal}')\""


def _octal(char: str) -> str:
    """A character as ``printf`` reads it; a byte of a file's name that is not UTF-8 is a lone surrogate."""
    lone = "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
    return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", lone))


ADD_TASK = Command("add-task", "NAME", "--data", "FILE")
LIST = Command("list")
REPAIR = Command("doctor", "--repair")
VERIFY = Command("verify", "--full")
