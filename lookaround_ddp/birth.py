"""Which process started this one: read before torch is imported, which takes seconds in which that can die."""

import os

PARENT = os.getppid()
