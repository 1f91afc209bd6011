"""Measurements of the average step, rounds, the image pipelines and the trainer; see README.md."""
