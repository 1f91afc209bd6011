"""Checksums by which what was written is known again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lookaround_ddp.files import regular


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file; raises OSError if it is none, as `regular` does."""
    digest = hashlib.sha256()
    with regular(path).open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def json_digest(state: dict[str, Any]) -> str:
    """Returns the SHA-256 of JSON-able values, whatever the order of their keys."""
    read = json.loads(json.dumps(state))  # as whoever reads it will find it: a key that is a number becomes text
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()
