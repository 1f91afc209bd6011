"""YAML text <-> values, by one rule: scalars are what YAML 1.2 (its core schema) says, and a key stands once.

PyYAML follows YAML 1.1, for which 5e-4 is text, 010 is 8, 1:30 is 90, and yes, no, on and off are booleans.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from lookaround_ddp.errors import UserError, shortened

MERGE = "tag:yaml.org,2002:merge"


SCALARS = {  # type -> what it looks like, and the first characters of that
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}


class _Twice(yaml.YAMLError):
    pass


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012  # none of YAML 1.1's

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line, first = key.start_mark.line + 1, lines.get((key.tag, key.value))
            if first is not None:
                where = f"line {line}" if first == line else f"lines {first} and {line}"
                raise _Twice(f"{shortened(key.value)} stands twice, in {where}: keep one of them")
            lines[key.tag, key.value] = line
        return node


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else."""


for _kind, (_pattern, _first) in SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), _first)


def parse(text: str, where: str) -> Any:
    """Returns the value of a YAML text; raises UserError, which begins with `where`, if it is none."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except _Twice as error:
        raise UserError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: what has a tag and does not fit it
        raise UserError(f"{where}: not YAML: {shortened(' '.join(str(error).split()), 400)}") from None


def dump(values: Any) -> str:
    """Returns a YAML text that `parse` reads as these values again; sections keep the order of their keys."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)
