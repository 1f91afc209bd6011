"""How long a test waits for what should come: on a loaded machine set TEST_TIMEOUT, in seconds."""

from __future__ import annotations

import os

TEST_TIMEOUT = float(os.environ.get("TEST_TIMEOUT", "600"))  # so much only where something hangs
