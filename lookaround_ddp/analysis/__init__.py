"""`analyze`: what the paper derives, checked and computed, and what its figures show, of finished runs."""
