"""Settings of the page."""

from __future__ import annotations

from dataclasses import dataclass

from lorabank.core.settings import setting
from lorabank.serving.config import ServeConfig


@dataclass(frozen=True, kw_only=True)
class PageConfig:
    """What the page may do."""

    allow_changes: bool = setting(False, "Let the page change the bank; otherwise it only reads.")
    data_folders: tuple[str, ...] = setting(
        (),
        "Folder whose files may be rows of a new task, and that exports may go into; may be repeated.",
        filled=True,
    )
    max_upload: int = setting(64 << 20, "Maximum size of an uploaded file, in bytes.", ge=1024, le=1 << 30)


@dataclass(frozen=True, kw_only=True)
class ServePageConfig(PageConfig):
    """Whether a server has the page, and what it may do."""

    page: bool = setting(False, "Serve the page for browsers too, at /page/.")


@dataclass(frozen=True, kw_only=True)
class UiConfig(PageConfig):
    """How the page is opened."""

    browser: bool = setting(True, "Open the page in the default browser.")
    port: int = setting(0, "Port to listen on; 0 takes a free one.", ge=0, le=65535)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N.")

    @property
    def server(self) -> ServeConfig:
        """The server of this page, for this machine alone."""
        return ServeConfig(port=self.port, device=self.device)
