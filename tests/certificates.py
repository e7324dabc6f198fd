"""Certificates for tests, made with the `openssl` command: an authority, and what it has signed."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, as PEM files."""

    cert: Path
    key: Path


class Authority:
    """Signs certificates; everything it makes is in `folder`."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        """Without openssl the test skips, and fails where CI is set."""
        if shutil.which("openssl") is None:
            message = "openssl is missing: run 'apt-get install openssl'"
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.cert, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        _openssl("req", "-x509", *_new_key(self._key), "-subj", f"/CN={name}", "-days", "30", "-out", self.cert)

    def sign(self, name: str, sans: str = "DNS:localhost,IP:127.0.0.1", *, days: int = 30) -> Pair:
        """A certificate for `name`; a negative number of `days` makes one that has expired."""
        pair = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={sans}\n", encoding="ascii")
        _openssl("req", *_new_key(pair.key), "-subj", f"/CN={name}", "-out", request)
        signer = ("-CA", self.cert, "-CAkey", self._key, "-CAcreateserial", "-extfile", extensions)
        _openssl("x509", "-req", "-in", request, *signer, "-days", str(days), "-out", pair.cert)
        return pair


def _new_key(path: Path) -> tuple[str | Path, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
