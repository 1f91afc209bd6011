"""The sections of a config, and reading it from YAML and `key.path=value`."""

from lookaround_ddp.config.average import NodesConfig
from lookaround_ddp.config.begun import as_begun, made_before, with_pipeline
from lookaround_ddp.config.changes import changed_keys
from lookaround_ddp.config.extend import as_extended, at_length_of, check_extension, grown
from lookaround_ddp.config.load import (
    check_cycles,
    check_length,
    keys_named,
    load_cell,
    load_config,
    load_ingredients,
    make_config,
    validated,
)
from lookaround_ddp.config.optimizer import OptimizerConfig
from lookaround_ddp.config.recipe import Recipe
from lookaround_ddp.config.rounds import iterations_of, k_text, lengths
from lookaround_ddp.config.schedule import ScheduleConfig
from lookaround_ddp.config.schema import (
    Augmentation,
    AugmentConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrajectoryConfig,
)
from lookaround_ddp.config.section import ListOf, Section
from lookaround_ddp.config.shipped import about_config, config_names, configs_folder
from lookaround_ddp.config.sweep import Sweep, is_never_averaged
from lookaround_ddp.config.text import dump

__all__ = [
    "AugmentConfig",
    "Augmentation",
    "Config",
    "DataConfig",
    "ListOf",
    "ModelConfig",
    "NodesConfig",
    "OptimizerConfig",
    "Recipe",
    "ScheduleConfig",
    "Section",
    "Sweep",
    "TrajectoryConfig",
    "about_config",
    "as_begun",
    "as_extended",
    "at_length_of",
    "changed_keys",
    "check_cycles",
    "check_extension",
    "check_length",
    "config_names",
    "configs_folder",
    "dump",
    "grown",
    "is_never_averaged",
    "iterations_of",
    "k_text",
    "keys_named",
    "lengths",
    "load_cell",
    "load_config",
    "load_ingredients",
    "made_before",
    "make_config",
    "validated",
    "with_pipeline",
]
