"""Exact scores on any number of ranks: of models, ensembles, soups."""

from lookaround_ddp.evaluation.classifier import read_classifier
from lookaround_ddp.evaluation.evaluator import (
    Evaluator,
    Score,
    evaluating,
    make_evaluators,
    score_text,
)
from lookaround_ddp.evaluation.export import export_onnx, export_timm
from lookaround_ddp.evaluation.finished_runs import (
    check_classes,
    check_same_data,
    evaluate_ensemble,
    evaluate_run,
    score_run,
    shipped_file,
    shipped_model,
)
from lookaround_ddp.evaluation.per_class import per_class, show_classes, write_classes
from lookaround_ddp.evaluation.predict import image_files, predictions
from lookaround_ddp.evaluation.recalibrate import recalibrate
from lookaround_ddp.evaluation.scorer import Scorer, State, loss_barrier
from lookaround_ddp.evaluation.soup import check_recipe, cook, mean_state

__all__ = [
    "Evaluator",
    "Score",
    "Scorer",
    "State",
    "check_classes",
    "check_recipe",
    "check_same_data",
    "cook",
    "evaluate_ensemble",
    "evaluate_run",
    "evaluating",
    "export_onnx",
    "export_timm",
    "image_files",
    "loss_barrier",
    "make_evaluators",
    "mean_state",
    "per_class",
    "predictions",
    "read_classifier",
    "recalibrate",
    "score_run",
    "score_text",
    "shipped_file",
    "shipped_model",
    "show_classes",
    "write_classes",
]
