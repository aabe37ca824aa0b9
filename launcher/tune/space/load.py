"""Loads a search space from YAML and validates it against its base config."""

from collections.abc import Sequence
from pathlib import Path

from fmfsd.config.strict_yaml import Document, read_document
from fmfsd.errors import ConfigError
from launcher.tune.space.parameters import Parameter, Space
from launcher.tune.space.parse import find_top_level_problems, parse_parameters
from launcher.tune.space.space_checks import BaseConfig, find_draw_problems, find_parameter_problems

__all__ = ["Parameter", "Space", "read_space"]


def read_space(path: Path, *, config: str | None = None, overrides: Sequence[str] = ()) -> Space:
    """Return the space in `path`, over `config` or the file's own config, with `overrides` as for `load_config`.

    Raise ConfigError with all problems and their lines. Validated are the bounds, choices and elements of each
    parameter alone, and a sample of draws (all of them if they are few): the config may still reject a rare
    combination, and memory is not checked, since that needs torch.
    """
    document = read_document(path)
    parameters, problems = parse_parameters(document)
    problems = [*find_top_level_problems(document), *problems]
    space = Space(config or _base_name(document), _trials(document), tuple(parameters))
    try:
        base = BaseConfig.load(space.config, overrides)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    space = base.attach_to(space)
    problems += find_parameter_problems(document, space, base, unparsed=_unread(document, parameters))
    problems += [] if problems else find_draw_problems(document, space, base)
    if problems:
        raise ConfigError(problems)
    return space


def _base_name(document: Document) -> str:
    """Return the base config: a file's path is relative to the space. Without a valid name, the default preset."""
    name = document.content.get("config") if isinstance(document.content, dict) else None
    if not isinstance(name, str):
        return "cifar100-resnet18"
    is_file = "/" in name or name.endswith((".yaml", ".yml"))
    return str(Path(document.name).parent / Path(name).expanduser()) if is_file else name


def _trials(document: Document) -> int:
    trials = document.content.get("trials") if isinstance(document.content, dict) else None
    return trials if type(trials) is int else 1


def _unread(document: Document, parameters: Sequence[Parameter]) -> set[str]:
    """Return the keys of parameters that could not be parsed."""
    content = document.content.get("parameters") if isinstance(document.content, dict) else None
    return {*(content if isinstance(content, dict) else ())} - {parameter.key for parameter in parameters}
