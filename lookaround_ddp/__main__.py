"""`python -m lookaround_ddp`."""

from __future__ import annotations

from lookaround_ddp.cli import main

if __name__ == "__main__":
    main()
