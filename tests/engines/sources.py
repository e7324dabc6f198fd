"""The sources of other versions of vLLM, for tests of its scheduler alone: no compiled parts, no dependencies.

    python -m tests.engines.sources FOLDER

Source archives come from PyPI by their hashes; of each the Python files are kept, beside a dist-info that calls the
build one for CPUs.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import tarfile
import urllib.request
from pathlib import Path

__all__ = ["VERSIONS", "fetch", "path_of"]

VERSIONS = ("0.12.0", "0.14.0", "0.19.0", "0.23.0", "0.25.0", "0.29.0", "0.31.0", "0.33.0")
_INDEX = "https://pypi.org/simple/vllm/"
_KEPT = re.compile(r"vllm-[^/]+/vllm/.*\.(py|json|jinja)$")
FOLDER = Path(__file__).parents[2] / ".venv-engines" / "sources"


def path_of(version: str, folder: Path = FOLDER) -> Path:
    """What to put first on PYTHONPATH for this version."""
    return folder / f"vllm-{version}"


def fetch(folder: Path = FOLDER) -> None:
    """Get the versions that are not there. Raises OSError where PyPI cannot be reached or says another hash."""
    missing = [version for version in VERSIONS if not (path_of(version, folder) / "complete").exists()]
    if not missing:
        return
    accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
    with urllib.request.urlopen(urllib.request.Request(_INDEX, headers=accept), timeout=60) as answer:
        files = {entry["filename"]: entry for entry in json.loads(answer.read())["files"]}
    for version in missing:
        entry = files[f"vllm-{version}.tar.gz"]
        with urllib.request.urlopen(entry["url"], timeout=300) as answer:
            data = answer.read()
        if hashlib.sha256(data).hexdigest() != entry["hashes"]["sha256"]:
            raise OSError(f"{entry['url']} is not what its index says")
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            kept = [member for member in archive.getmembers() if _KEPT.match(member.name)]
            archive.extractall(folder, members=kept, filter="data")
        info = path_of(version, folder) / f"vllm-{version}+cpu.dist-info"
        info.mkdir(exist_ok=True)
        text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
        (info / "METADATA").write_text(text, encoding="utf-8")
        (path_of(version, folder) / "complete").touch()


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
