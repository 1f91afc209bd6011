"""Every key of a config with its default, type and meaning, as Markdown: what configs/README.md ends with.

python -m lookaround_ddp.config.reference
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lookaround_ddp.config.schema import Config

TYPE_NAMES: Mapping[Any, str] = {bool: "true or false", int: "integer", float: "number", str: "text", Any: "any value"}
LARGE = 10_000  # upper bounds from here on only keep a machine from harm


END = "\n..."  # of a YAML document that is one value


def reference() -> str:
    """Returns a table for the config and one for each of its sections."""
    return "\n".join(_tables(Config, ""))


def _tables(section: type[BaseModel], path: str) -> Iterator[str]:
    below: list[tuple[str, type[BaseModel]]] = []
    yield f"### {path or 'The run'}\n"
    yield "| key | default | what it can be | meaning |"
    yield "|---|---|---|---|"
    for name, field in section.model_fields.items():
        if field.exclude:  # read from old configs alone
            continue
        key = f"{path}.{name}" if path else name
        inner = _section(field.annotation)
        if inner is not None:
            below.append((key, inner))
            if field.default is not None:
                continue
        kind = _kind(field) if inner is None else "a section: see below"
        yield f"| `{key}` | {_default(field)} | {kind} | {_meaning(field)} |"
    yield ""
    for key, inner in below:
        yield from _tables(inner, key)


def _section(annotation: Any) -> type[BaseModel] | None:
    """Returns the section that an annotation names, alone or beside None."""
    for each in (annotation, *get_args(annotation)):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = _plain(field.get_default(call_default_factory=True))
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return f"`{text.partition(END)[0].strip()}`"


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _kind(field: FieldInfo) -> str:
    return _named(field.annotation) + _bounds(field.metadata)


def _named(annotation: Any) -> str:
    """Returns the words for a type."""
    if annotation in TYPE_NAMES:
        return TYPE_NAMES[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _named(arguments[0]) + _bounds(_constraints(arguments[1:]))
    if origin is Literal:
        return _or([f"`{each}`" for each in arguments])
    if origin in (Union, types.UnionType):
        words = [_named(each) for each in arguments if each is not type(None)]
        return _or([*words, "null"] if type(None) in arguments else words)
    if origin is tuple:
        return f"list of {_named(arguments[0])}" if arguments[-1] is Ellipsis else "pair"
    return "mapping" if origin is dict else str(annotation)


def _constraints(metadata: Any) -> list[Any]:
    """Returns the bounds among what annotates a type, those in a Field included."""
    return [bound for each in metadata for bound in getattr(each, "metadata", [each])]


def _bounds(metadata: Any) -> str:
    words = []
    for each in metadata:
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            bound = getattr(each, name, None)
            if bound is not None and abs(bound) < LARGE:
                words.append(f"{sign} {bound:g}")
    words = [word for word in words if not (word[0] == "≥" and word.replace("≥", ">") in words)]
    return f", {', '.join(words)}" if words else ""


def _or(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    print(reference())
