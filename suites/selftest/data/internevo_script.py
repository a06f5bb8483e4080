"""InternEvo's own tools/tokenizer.py, out of a checkout and unchanged, made to load a given tokenizer.

The script loads the model file beside it, and its tokenizer class from a package whose ``__init__`` also imports the
network, and with it torch; so both lie in a folder of their own, with that ``__init__`` cut down to the class.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

# The tags ask for transformers<4.30: later ones cut a text at <s> and </s>, and so encode other tokens.
PYTHON = os.environ.get("CONFORMANCE_TEST_TRANSFORMERS", sys.executable)


def missing() -> str:
    """Say why the script cannot run here; "" when it can."""
    found = subprocess.run([PYTHON, "-c", "import transformers; print(transformers.__version__)"], capture_output=True)
    version = found.stdout.decode().strip()
    if found.returncode == 0 and tuple(map(int, version.split(".")[:2])) < (4, 30):
        return ""
    return (
        f"tools/tokenizer.py needs transformers<4.30 and sentencepiece, {PYTHON} has {version or 'none'}; "
        "set CONFORMANCE_TEST_TRANSFORMERS to a Python that has them"
    )


def lay_out(checkout: Path, tokenizer: Path, folder: Path) -> Path:
    """Copy the script, its tokenizer class and a tokenizer; return the script."""
    package = folder / "transformers" / "internlm_model"
    (folder / "tools").mkdir(parents=True)
    package.mkdir(parents=True)
    shutil.copyfile(checkout / "tools" / "tokenizer.py", folder / "tools" / "tokenizer.py")
    shutil.copyfile(tokenizer, folder / "tools" / "tokenizer_internlm.model")
    module = "tokenization_internlm.py"
    shutil.copyfile(checkout / "transformers" / "internlm_model" / module, package / module)
    (package / "__init__.py").write_text("from .tokenization_internlm import InternLMTokenizer\n")
    return folder / "tools" / "tokenizer.py"


def run_script(script: Path, text: Path, out: Path) -> None:
    """Encode a file into ``out`` and its index into ``out.meta``."""
    command = [PYTHON, str(script), "--text_input_path", str(text), "--bin_output_path", str(out)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONUTF8": "1"})
