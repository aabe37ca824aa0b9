"""A search space: YAML to typed parameters whose keys are dotted config names, checked against the config."""

from collections.abc import Sequence
from pathlib import Path

from fmfsd.config.strict_yaml import Document, read_document
from fmfsd.errors import ConfigError
from launcher.tune.space.check import Base, drawn_problems, own_problems
from launcher.tune.space.parameters import KINDS, LISTS, RANGES, Parameter, Space, exists
from launcher.tune.space.parse import frame_problems, parameters_of

__all__ = ["KINDS", "LISTS", "RANGES", "Parameter", "Space", "exists", "read_space"]


def read_space(path: Path, *, config: str | None = None, overrides: Sequence[str] = ()) -> Space:
    """The space in `path`, over `config` or the file's own, with `overrides` as `load_config` takes them.

    ConfigError with everything that is wrong, with lines. Proven are each parameter's ends, choices and elements by
    themselves, and a sample of draws (all of them, if they are few): a rare combination may yet be refused by the
    config, and what only torch can tell, such as memory, is not asked.
    """
    document = read_document(path)
    parameters, problems = parameters_of(document)
    problems = [*frame_problems(document), *problems]
    space = Space(config or _base_name(document), _trials(document), tuple(parameters))
    try:
        base = Base.load(space.config, overrides)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    space = base.under(space)
    problems += own_problems(document, space, base, unread=_unread(document, parameters))
    problems += [] if problems else drawn_problems(document, space, base)
    if problems:
        raise ConfigError(problems)
    return space


def _base_name(document: Document) -> str:
    """A file's is meant from where the space is. Without one, or with one that is a problem: the default preset."""
    name = document.content.get("config") if isinstance(document.content, dict) else None
    if not isinstance(name, str):
        return "cifar100-resnet18"
    is_file = "/" in name or name.endswith((".yaml", ".yml"))
    return str(Path(document.name).parent / Path(name).expanduser()) if is_file else name


def _trials(document: Document) -> int:
    trials = document.content.get("trials") if isinstance(document.content, dict) else None
    return trials if type(trials) is int else 1


def _unread(document: Document, parameters: Sequence[Parameter]) -> set[str]:
    """Keys of parameters that are not well written: what they may be is not known."""
    content = document.content.get("parameters") if isinstance(document.content, dict) else None
    return {*(content if isinstance(content, dict) else ())} - {parameter.key for parameter in parameters}
