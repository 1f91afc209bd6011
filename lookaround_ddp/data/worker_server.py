"""Imported by the process that loader workers are forked from, and nowhere else: they need not import it again."""

from __future__ import annotations

from lookaround_ddp.data import workers

workers.ignore_signals()
