"""`Lookaround` in the loops of other libraries: a module for each, which needs that library and `averaging` alone.

`lookaround_ddp.integrations.lightning`, `.accelerate` and `.transformers`. Each rank trains a replica of its own, on
all of the data; what would average gradients between ranks, and so keep the replicas alike, is refused.
"""
