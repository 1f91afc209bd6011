"""Which process started this one: read before torch is imported, which takes seconds in which that can die."""

from __future__ import annotations

import os

PARENT = os.getppid()
