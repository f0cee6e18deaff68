"""Faults that the harnesses must find: each takes one sync, order, lock, pragma or check out of the code.

A mutant is a change of a function's source. It is made in a process of its own, from where every fork inherits it; the
shipped code knows nothing of it. A harness that finds nothing in the sound code and nothing in its mutants either
proves nothing.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: What is wrong, in a few words.
        target: ``module:function`` or ``module:Class.method``.
        changes: Pairs of old and new text; each old one stands in the source exactly once.
        caught_by: The harnesses that look for it, the quickest first.
    """

    name: str
    target: str
    changes: tuple[tuple[str, str], ...]
    caught_by: tuple[str, ...]

    def apply(self) -> None:
        """Change the function in this process, for all who have imported it."""
        function = _function(self.target)
        function.__code__ = self.mutated(function).__code__

    def mutated(self, function: Any = None) -> Any:
        """The changed function; the sound one stays as it is.

        Raises:
            ValueError: The text that is to be changed is not there.
        """
        function = function or _function(self.target)
        source = textwrap.dedent(inspect.getsource(function))
        while source.startswith("@"):
            source = source.split("\n", 1)[1]
        for old, new in self.changes:
            if source.count(old) != 1:
                raise ValueError(f"mutant {self.name!r}: {old!r} is not in {self.target} once")
            source = source.replace(old, new)
        names: dict[str, Any] = {}
        exec(
            compile(f"from __future__ import annotations\n{source}", f"<{self.name}>", "exec"),
            dict(function.__globals__),
            names,
        )
        return names[function.__name__]


def _function(target: str) -> Any:
    module, _, path = target.partition(":")
    found: Any = importlib.import_module(f"lorabank.{module}")
    for name in path.split("."):
        found = getattr(found, name)
    return inspect.unwrap(found)


def _one(name: str, target: str, old: str, new: str, *caught_by: str) -> Mutant:
    return Mutant(name, target, ((old, new),), caught_by)


MUTANTS = (
    # each sync
    _one("a file is not synced", "bank.objects.store:write_new", "os.fsync(descriptor)", "pass", "F6", "F5"),
    _one("an adapter's folder is not synced", "bank.objects.store:Stage.add_adapter",
         "sync_folder(folder)", "pass", "F6"),
    _one("a rename is not synced", "bank.objects.store:Stage._move", "sync_folder(target.parent)", "pass", "F6"),
    _one("a new folder of blobs is not synced", "bank.objects.store:Stage.place",
         'sync_folder(self._layout.root / "blobs")', "pass", "F6"),
    _one("what a killed process renamed is taken over without a sync", "bank.objects.store:Stage._move",
         "os.utime(target)", "return os.utime(target)", "F6"),
    _one("a deletion's rename is not synced", "bank.objects.folder:delete", "os.fsync(parent)", "pass", "F6"),
    # each order
    Mutant("rows before files", "bank.operations:Operation.commit_task",
           (("self._place()", "pass"), ("self._finish()", "(self._stage.place(), self._finish())")),
           ("F2", "F1", "F6")),
    _one("files go before their rows", "bank.upkeep.removal:remove", "with catalog.lock(",
         "__import__('shutil').rmtree(layout.root / 'adapters')\n    with catalog.lock(", "F2", "F1"),
    _one("statements without a transaction", "bank.catalog.sqlite:SqliteCatalog.write",
         'execute("BEGIN IMMEDIATE")', 'execute("SELECT 1")', "F2", "F6"),
    # each lock
    _one("gc without its lock", "bank.upkeep.gc:gc", "catalog.lock(exclusive=True), ", "", "F8"),
    _one("writers without a lock", "bank.locks:bank_lock",
         "_acquire(", "exclusive and _acquire(", "F8"),
    _one("a transaction that takes the write lock late", "bank.catalog.sqlite:SqliteCatalog.write",
         'execute("BEGIN IMMEDIATE")', 'execute("BEGIN")', "F8"),
    # each pragma
    _one("synchronous = NORMAL", "bank.catalog.connections:connect_to_write",
         "synchronous = FULL", "synchronous = NORMAL", "F6", "F5"),
    _one("no busy timeout", "bank.catalog.connections:_connected", "timeout=BUSY_SECONDS", "timeout=0", "F8"),
    Mutant("foreign keys off", "bank.catalog.connections:connect_to_write",
           (("{'ON' if foreign_keys else 'OFF'}", "OFF"), ("!= int(foreign_keys)", "== 7")), ("F10",)),
    # each check
    _one("verify does not hash", "bank.objects.store:blob_problems",
         "full and hash_file", "False and hash_file", "F9", "F10"),
    _one("a link in place of the database is followed", "bank.catalog.judging:_judged",
         "os.lstat(path)", "os.stat(path)", "F10"),
    _one("a journal that names another file is played back", "bank.catalog.judging:_foreign",
         "file.read() == _MAGIC", "False", "F20"),
    _one("a schema is compared by its names", "bank.catalog.definitions:same",
         "_parts(sql) == _parts(expected)", "True", "F20"),
    _one("rows are taken as they are", "bank.catalog.columns:sound", "if not good", "if False", "F20"),
    _one("a database may take any number of steps", "bank.catalog.connections:_bound",
         "connection.set_progress_handler(spend, _STRIDE)", "pass", "F20"),
    _one("an error repeats what the caller sent", "serving.served:_invalid", 'one["msg"]', 'one["input"]', "F21"),
    _one("a pipe is waited for", "bank.objects.open_regular:open_plain", " | os.O_NONBLOCK", "", "F10"),
    _one("rows are not compared with their digest", "bank.upkeep.referenced:_is_unchanged",
         "try:", "try:\n        return True",
         "F9"),
    _one("errors of the disk are not translated", "bank.failures:reported",
         "except Exception", "except EOFError", "F7"),
    _one("copies are numbered by the clock alone", "bank.upkeep.copies:next_copy", "last + 1", "0", "F19"),
    _one("the copy made last can be the one that goes", "bank.upkeep.copies:rotate",
         "copies(layout)[:-KEPT_COPIES]", "copies(layout)[-KEPT_COPIES:]", "F19"),
    _one("a restore keeps nothing", "bank.upkeep.restore:_replace", "kept = back_up(layout, spare=backup)",
         "kept = layout.database", "F18", "F19"),
    _one("what a copy holds is compared by size", "bank.upkeep.copy_in:_wanted",
         "adapter_problems(here, files)", "adapter_problems(here, files, full=False)", "F18"),
    # training and merging
    _one("old checkpoints go before the new one is whole", "training.checkpoints:save_checkpoint",
         "partial.mkdir(", "[shutil.rmtree(old) for old in _by_step(work)]\n    partial.mkdir(", "F4"),
    _one("a checkpoint is taken as it is", "training.checkpoints:_is_whole",
         "try:", "try:\n        return True", "F9"),
    _one("resuming forgets the random state", "training.checkpoints:restore_random_state",
         'version, keys, gauss = facts["python"]', 'return\n    version = facts["python"]', "F3"),
    _one("the past is not compared", "workflows.learning.past:moved_on", "if then == now:", "if True:", "F17"),
    _one("merging changes the base itself", "models.mixing.mixture:MixedLoraLinear.merge_delta",
         "self.form = Merged(self.site.merged(delta))",
         "self.base.weight.data += delta.to(self.base.weight.dtype)", "F16"),
)  # fmt: skip
