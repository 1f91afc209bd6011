"""What several test modules share."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # several ranks share few cores; two OpenMP threads each would thrash
