"""Images, their augmentations, and the batches of an iteration."""

from lookaround_ddp.data.batches import Batch, BatchPlan, EvaluationBatches, Iterations
from lookaround_ddp.data.datasets import Dataset, open_dataset, split_seed
from lookaround_ddp.data.described import described
from lookaround_ddp.data.folders import images_in
from lookaround_ddp.data.images import Arrays, Files, Images, Subset, in_memory
from lookaround_ddp.data.loader import load
from lookaround_ddp.data.mixing import mixed
from lookaround_ddp.data.pipeline import make_batches, open_on_all_ranks
from lookaround_ddp.data.reading import UnreadableImage, read_rgb
from lookaround_ddp.data.transforms import central_square, evaluation_transform, train_pipelines
from lookaround_ddp.data.workers import get_ready

__all__ = [
    "Arrays",
    "Batch",
    "BatchPlan",
    "Dataset",
    "EvaluationBatches",
    "Files",
    "Images",
    "Iterations",
    "Subset",
    "UnreadableImage",
    "central_square",
    "described",
    "evaluation_transform",
    "get_ready",
    "images_in",
    "in_memory",
    "load",
    "make_batches",
    "mixed",
    "open_dataset",
    "open_on_all_ranks",
    "read_rgb",
    "split_seed",
    "train_pipelines",
]
