"""A merged model as one GGUF file beside a Modelfile of Ollama, made by llama.cpp's own converter."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from lorabank.core.errors import IncompatibleError, MissingExtraError
from lorabank.core.task_kinds import task_kind
from lorabank.workflows.carrying.model_card import Facts

CONVERTER = "convert_hf_to_gguf.py"
MODELFILE = "Modelfile"
_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def find_converter(task_type: str) -> Path:
    """llama.cpp's converter on PATH.

    Raises:
        IncompatibleError: The bank's models generate nothing.
        MissingExtraError: There is no converter.
    """
    if not task_kind(task_type).generates:
        raise IncompatibleError(
            "llama.cpp and Ollama generate text, and the bank's base is a classifier",
            hint="export it --merged",
            unchanged="nothing was written",
        )
    if (found := shutil.which(CONVERTER)) is None:
        raise MissingExtraError(
            f"there is no {CONVERTER} of llama.cpp on PATH",
            hint="git clone https://github.com/ggml-org/llama.cpp, and add its folder to PATH",
            unchanged="nothing was written",
        )
    return Path(found)


def convert(converter: Path, checkpoint: Path, file: Path, dtype: str) -> None:
    """Make a GGUF file of a transformers checkpoint.

    Raises:
        IncompatibleError: The converter refuses the model.
    """
    command = [sys.executable, str(converter), str(checkpoint)]
    command += ["--outfile", str(file), "--outtype", _TYPES.get(dtype, "auto")]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not file.is_file():
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it wrote no file"]
        raise IncompatibleError(
            f"{converter}: {said[-1][:400]}",
            hint="export it --merged, and see what your version of llama.cpp converts",
            unchanged="nothing was written",
        )


def modelfile(facts: Facts, file: str) -> bytes:
    """What ``ollama create NAME -f Modelfile`` reads: the file, how a text is asked, and greedy answers."""
    lines = [f"FROM ./{file}"]
    if not facts.chat:  # else the chat template is in the file
        before, text, behind = (facts.template or "{text}").partition("{text}")
        asked = f"{_literal(before)}{'{{ .Prompt }}' if text else ''}{_literal(behind)}"
        lines.append(f'TEMPLATE """{asked}"""')
    lines += ["PARAMETER temperature 0", f"PARAMETER num_predict {facts.max_new_tokens}"]
    return ("\n".join(lines) + "\n").encode()


def _literal(text: str) -> str:
    """Text in a template of Go, within three quotes."""
    return text.replace("{{", '{{ "{{" }}').replace('"""', '{{ "\\"\\"\\"" }}')
