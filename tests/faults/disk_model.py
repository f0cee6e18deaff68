"""A disk as a power cut sees it: what was recorded as done, and which of it was made durable by a sync.

The model is stricter than ext4: a write is durable once its file was synced, a name once its folder was, a rename
from one folder to another is a new name and a name less, and of what is not durable any part may be there after the
cut. The shared-memory index of SQLite (``-shm``) is left out: SQLite makes it anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.tracing import Call

Tree = dict[str, bytes | None]
"""Path below the place to content, None for a folder."""


@dataclass(eq=False)
class Node:
    """A file or a folder as it was before the first change."""

    is_folder: bool
    content: bytes = b""
    entries: dict[str, Node] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """One change that reached the page cache.

    Attributes:
        what: ``write``, ``cut``, ``link``, ``unlink``, ``rename``, or ``sync`` and ``said``, which change nothing.
        on: The node whose sync makes it durable.
        detail: Offset and bytes; length; name and node; name; old name, new name and node.
        label: For messages.
    """

    what: str
    on: Node
    detail: tuple[Any, ...]
    label: str


class Disk:
    """Follows recorded calls from a place as it lies on the disk, and collects the changes."""

    def __init__(self, place: Path) -> None:
        self.place = os.fsencode(place)
        self.root = _load(place)
        self.changes: list[Change] = []
        self._now: dict[Node, dict[str, Node]] = {}
        self._open: dict[int, tuple[Node, str]] = {}
        self._offsets: dict[int, int] = {}

    def follow(self, calls: Iterable[Call]) -> list[Change]:
        """Translate the calls into changes of this place."""
        handlers: dict[str, Callable[[tuple[Any, ...], int], None]] = {
            "openat": self._openat,
            "write": self._write,
            "pwrite64": lambda a, result: self._written(int(a[0]), a[1][:result], int(a[3])),
            "ftruncate": lambda a, _: self._on_open(int(a[0]), "cut", int(a[1])),
            "fsync": lambda a, _: self._on_open(int(a[0]), "sync"),
            "fdatasync": lambda a, _: self._on_open(int(a[0]), "sync"),
            "mkdir": lambda a, _: self._link(a[0], Node(True)),
            "unlink": lambda a, _: self._unlink(None, a[0]),
            "rmdir": lambda a, _: self._unlink(None, a[0]),
            "unlinkat": lambda a, _: self._unlink(a[0], a[1]),
            "rename": lambda a, _: self._rename(None, a[0], None, a[1]),
            "renameat": lambda a, _: self._rename(a[0], a[1], a[2], a[3]),
        }
        for call in calls:
            if call.name in handlers:
                handlers[call.name](call.arguments, call.result)
            elif call.name in ("renameat2", "mkdirat", "fallocate"):
                raise ValueError(f"the model does not know {call.name}")
        return self.changes

    def _entries(self, folder: Node) -> dict[str, Node]:
        return self._now.setdefault(folder, dict(folder.entries))

    def _at(self, path: bytes, start: str | None = None) -> tuple[Node, str, Node | None] | None:
        """Folder, name and node of a path inside the place; None for a path outside."""
        if not path.startswith(b"/") and start is not None and start.isdigit() and int(start) in self._open:
            folder, parts = self._open[int(start)][0], [path.decode()]
        elif path == self.place:
            return self.root, "", self.root
        elif path.startswith(self.place + b"/"):
            folder, parts = self.root, path[len(self.place) + 1 :].decode().split("/")
        else:
            return None
        for part in parts[:-1]:
            folder = self._entries(folder)[part]
        return folder, parts[-1], self._entries(folder).get(parts[-1])

    def _openat(self, arguments: tuple[Any, ...], descriptor: int) -> None:
        self._open.pop(descriptor, None)
        self._offsets[descriptor] = 0
        found = self._at(arguments[1], arguments[0])
        if found is None or found[1].endswith("-shm"):
            return
        folder, name, node = found
        if node is None:
            node = Node(False)
            self._entries(folder)[name] = node
            self.changes.append(Change("link", folder, (name, node), f"create {name}"))
        elif "O_TRUNC" in arguments[2]:
            self.changes.append(Change("cut", node, (0,), f"truncate {name}"))
        self._open[descriptor] = (node, name)

    def _write(self, arguments: tuple[Any, ...], result: int) -> None:
        descriptor, data = int(arguments[0]), arguments[1][:result]
        if descriptor in self._open:
            self._written(descriptor, data, self._offsets[descriptor])
            self._offsets[descriptor] += result
        elif data == b"done\n":
            self.changes.append(Change("said", self.root, (), "done"))

    def _written(self, descriptor: int, data: bytes, offset: int) -> None:
        self._on_open(descriptor, "write", offset, data)

    def _on_open(self, descriptor: int, what: str, *detail: Any) -> None:
        if descriptor in self._open:
            node, name = self._open[descriptor]
            self.changes.append(Change(what, node, detail, f"{what} {name or 'the place'}"))

    def _link(self, path: bytes, node: Node) -> None:
        found = self._at(path)
        if found is not None:
            self._entries(found[0])[found[1]] = node
            self.changes.append(Change("link", found[0], (found[1], node), f"make {found[1]}"))

    def _unlink(self, start: str | None, path: bytes) -> None:
        found = self._at(path, start)
        if found is not None and not found[1].endswith("-shm"):
            self._entries(found[0]).pop(found[1])
            self.changes.append(Change("unlink", found[0], (found[1],), f"unlink {found[1]}"))

    def _rename(self, old_start: str | None, old: bytes, new_start: str | None, new: bytes) -> None:
        source, target = self._at(old, old_start), self._at(new, new_start)
        if source is None or target is None or source[2] is None:
            raise ValueError(f"the model does not know a rename of {old!r} to {new!r}")
        self._entries(source[0]).pop(source[1])
        self._entries(target[0])[target[1]] = source[2]
        if source[0] is target[0]:
            detail = (source[1], target[1], source[2])
            self.changes.append(Change("rename", target[0], detail, f"rename to {target[1]}"))
        else:
            self.changes.append(Change("link", target[0], (target[1], source[2]), f"rename to {target[1]}"))
            self.changes.append(Change("unlink", source[0], (source[1],), f"rename from {source[1]}"))


def durable_and_open(changes: Sequence[Change]) -> tuple[list[int], list[int]]:
    """Positions of the changes that a sync covers, and of those that may or may not be there after a cut now."""
    waiting: dict[Node, list[int]] = {}
    durable: list[int] = []
    for position, change in enumerate(changes):
        if change.what == "sync":
            durable += waiting.pop(change.on, [])
        elif change.what != "said":
            waiting.setdefault(change.on, []).append(position)
    return sorted(durable), sorted(position for positions in waiting.values() for position in positions)


def tree(root: Node, changes: Iterable[Change]) -> Tree:
    """What lies on the disk when exactly these changes got there."""
    entries: dict[Node, dict[str, Node]] = {}
    content: dict[Node, bytearray] = {}

    def entries_of(node: Node) -> dict[str, Node]:
        return entries.setdefault(node, dict(node.entries))

    def content_of(node: Node) -> bytearray:
        return content.setdefault(node, bytearray(node.content))

    for change in changes:
        if change.what == "write":
            offset, data = change.detail
            data_now = content_of(change.on)
            data_now.extend(bytes(max(0, offset - len(data_now))))
            data_now[offset : offset + len(data)] = data
        elif change.what == "cut":
            del content_of(change.on)[change.detail[0] :]
        elif change.what == "link":
            entries_of(change.on)[change.detail[0]] = change.detail[1]
        elif change.what == "unlink":
            entries_of(change.on).pop(change.detail[0], None)
        elif change.what == "rename":
            old, new, node = change.detail
            if entries_of(change.on).get(old) is node:
                del entries_of(change.on)[old]
            entries_of(change.on)[new] = node
    found: Tree = {}

    def walk(node: Node, path: str) -> None:
        for name, child in entries.get(node, node.entries).items():
            below = f"{path}{name}"
            found[below] = None if child.is_folder else bytes(content.get(child, child.content))
            walk(child, f"{below}/")

    walk(root, "")
    return found


def write_tree(found: Tree, place: Path) -> None:
    """Put a tree on the real disk."""
    place.mkdir()
    for path, data in found.items():
        if data is None:
            (place / path).mkdir(mode=0o700)
        else:
            (place / path).write_bytes(data)


def _load(path: Path) -> Node:
    if not path.is_dir():
        return Node(False, path.read_bytes())
    return Node(
        True, entries={child.name: _load(child) for child in path.iterdir() if not child.name.endswith("-shm")}
    )
