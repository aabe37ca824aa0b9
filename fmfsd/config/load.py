"""Config loading: a preset or YAML file plus `a.b=c` overrides becomes a valid RunConfig, or a list of all problems."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_json

from fmfsd.config.consistency import find_contradictions
from fmfsd.config.methods import METHODS
from fmfsd.config.names import TIMM
from fmfsd.config.schema import DataConfig, RunConfig
from fmfsd.config.strict_yaml import MAX_DEPTH, Document, KeyPath, parse_yaml, read_document
from fmfsd.errors import ConfigError, Problem
from fmfsd.pretrained_names import expand_backbone, is_weights_name, to_absolute_source

PRESETS = Path(__file__).parent.parent / "presets"


class InvalidConfigError(ConfigError):
    """A config with invalid values.

    `invalid_keys` are the dotted keys of values that the schema rejects. `draft` has defaults in their place, so that
    everything that does not depend on them can still be checked.
    """

    def __init__(self, problems: Sequence[Problem], draft: RunConfig, invalid_keys: Sequence[str]) -> None:
        super().__init__(problems)
        self.draft, self.invalid_keys = draft, tuple(invalid_keys)


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def config_name(source: str) -> str:
    """Return the run name for this preset or file: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", Path(source).stem)[:64]


def load_config(source: str, overrides: Sequence[str] = (), *, data_root: str = "data") -> RunConfig:
    """Return the resolved config of `source`, a preset's name or a YAML file.

    `overrides` are `a.b=c` with c as YAML; `data_root` is the default of data.root.
    Raises ConfigError with every problem, each with its file and line.
    """
    draft = _Draft(read_document(_find_file(source)))
    draft.override(overrides)
    draft.fill_in_root(data_root)
    draft.expand_backbone()
    draft.apply_method()
    config, invalid_keys = draft.validate()
    config = draft.resolve(config)
    if draft.problems:
        raise InvalidConfigError(draft.problems, config, invalid_keys)
    return config


def load_data_config(**values: Any) -> DataConfig:
    """Return the data section with these values, which include `root`; `classes` may be unset.

    Raises ConfigError with every problem.
    """
    draft = _Draft(Document({"data": values}, {}, ""))
    try:
        config = draft.parse_schema()
    except ValidationError as error:
        raise ConfigError(list(draft.describe(error))) from error
    data_problems = find_contradictions(config, skip_keys=("data.classes", "method", "model", "optim", "train"))
    if problems := [Problem("", f"{key}: {message}") for key, message in data_problems]:
        raise ConfigError(problems)
    return config.data


def dump_config(config: RunConfig) -> str:
    """Return `config` as YAML that `load_config` reads back to an equal config."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None))


def dump_explicit(source: str, overrides: Sequence[str] = (), *, data_root: str = "data") -> str:
    """Return the explicitly set values as YAML, without those that the method implies: so the method can be changed.

    Raises what `load_config` raises.
    """
    config = load_config(source, overrides, data_root=data_root)
    draft = _Draft(read_document(_find_file(source)))
    draft.override(overrides)
    draft.content.setdefault("data", {})["root"] = config.data.root
    if config.train.init_from is not None:
        draft.content["train"]["init_from"] = config.train.init_from
    return str(yaml.safe_dump(draft.content, sort_keys=False, default_flow_style=None))


def _find_file(source: str) -> Path:
    if "/" in source or source.endswith((".yaml", ".yml")):
        return Path(source)
    if source in preset_names():
        return PRESETS / f"{source}.yaml"
    raise ConfigError(
        f"unknown preset {source!r}{_suggest(source, preset_names())} presets: {', '.join(preset_names())}"
    )


class _Draft:
    """An unchecked config, with the source of each value: a line of a file, or an option."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self._set_by: dict[KeyPath, str] = {}
        self.content: dict[str, Any] = document.content if isinstance(document.content, dict) else {}
        if not isinstance(document.content, dict):
            found = "nothing" if document.content is None else type(document.content).__name__
            raise ConfigError([Problem(document.name, f"expected keys and values, found {found}")])
        self._name_engine()

    def where(self, path: KeyPath) -> str:
        for end in range(len(path), 0, -1):
            if path[:end] in self._set_by:
                return self._set_by[path[:end]]
        return self.document.locate(path)

    def override(self, overrides: Sequence[str]) -> None:
        for text in overrides:
            key, equals, value = text.partition("=")
            try:
                path = tuple(key.split("."))
                if not (equals and all(path) and key.isprintable() and len(path) <= MAX_DEPTH):
                    raise ConfigError([Problem("", "expected a.b=c, as in optim.lr=0.05")])
                self._put(path, parse_yaml(value, f"--set {text}").content, f"--set {text}")
            except ConfigError as error:
                self.problems += [Problem(f"--set {text}", problem.message) for problem in error.problems]

    def _put(self, path: KeyPath, value: Any, where: str) -> None:
        inside = self.content
        for depth, part in enumerate(path[:-1], 1):
            if part not in inside:
                inside[part], self._set_by[path[:depth]] = {}, where
            inside = inside[part]
            if not isinstance(inside, dict):
                raise ConfigError([Problem(where, f"{part} is a value, not a section")])
        inside[path[-1]] = value
        self._set_by[path] = where
        self._name_engine()

    def _name_engine(self) -> None:
        """`engine: deepspeed` is short for `engine: {name: deepspeed}`."""
        if isinstance(self.content.get("engine"), str):
            self.content["engine"] = {"name": self.content["engine"]}

    def fill_in_root(self, root: str) -> None:
        data = self.content.setdefault("data", {})
        if isinstance(data, dict) and data.get("root") is None:
            data["root"] = root
            self._set_by[("data", "root")] = "FMFSD_DATA"

    def expand_backbone(self) -> None:
        """Replace `model.backbone: timm/local-dir:PATH` by the model of that folder and its weights."""
        model = self.content.get("model")
        if not isinstance(model, dict) or not is_weights_name(model.get("backbone")):
            return
        try:
            backbone, source = expand_backbone(model["backbone"])
        except ValueError as error:
            self.problems.append(Problem(self.where(("model", "backbone")), f"model.backbone: {error}"))
            backbone, source = f"{TIMM}resnet18", True
        model["backbone"] = backbone
        model.setdefault("pretrained", source)

    def apply_method(self) -> None:
        """Fill in the values that the method implies or suggests; report values that contradict the method."""
        method = self.content.get("method", RunConfig.model_fields["method"].default)
        known = METHODS.get(method) if isinstance(method, str) else None
        if known is None:
            return
        for dotted, value in known.default_values.items():
            self._set_default(dotted, value)
        for dotted, values in known.allowed_values.items():
            actual = self._set_default(dotted, values[0])
            if actual not in values:
                message = f"{dotted}: method {method} requires {' or '.join(map(str, values))}, found {actual}"
                where = self.where(tuple(dotted.split(".")))
                self.problems.append(Problem(where, f"{message}: change one of the two"))

    def _set_default(self, dotted: str, value: Any) -> Any:
        """Return the config's value of this key, which is set to `value` if it is not set yet."""
        section, key = dotted.split(".")
        values = self.content.setdefault(section, {})
        return values.setdefault(key, value) if isinstance(values, dict) else value

    def _to_absolute(self, path: str | None, key: KeyPath) -> str | None:
        """Return the absolute path: workers have another working directory."""
        try:
            return None if path is None else str(Path(path).expanduser().absolute())
        except RuntimeError as error:
            raise ConfigError([Problem(self.where(key), f"{'.'.join(key)}: {path}: no such user")]) from error

    def resolve(self, config: RunConfig) -> RunConfig:
        """Return `config` with absolute paths and resolved branches."""
        root = self._to_absolute(config.data.root, ("data", "root"))
        init_from = self._to_absolute(config.train.init_from, ("train", "init_from"))
        pretrained = to_absolute_source(config.model.pretrained)
        return config.model_copy(
            update={
                "data": config.data.model_copy(update={"root": root}),
                "model": config.model.model_copy(update={"branches": config.branches, "pretrained": pretrained}),
                "train": config.train.model_copy(update={"init_from": init_from}),
            }
        )

    def validate(self) -> tuple[RunConfig, list[str]]:
        """Collect every problem: values that the schema rejects, and contradictions among all others.

        Return the config with defaults for the rejected values, and the keys of these values.
        """
        invalid_paths: set[KeyPath] = set()
        try:
            config = self.parse_schema()
        except ValidationError as error:
            self.problems += self.describe(error)
            invalid_paths = {self._strip_union_members(details["loc"])[:2] for details in error.errors()}
            self._drop(invalid_paths)
            config = self.parse_schema()
        invalid_keys = [".".join(path) for path in invalid_paths]
        self.problems += [
            Problem(self.where(tuple(key.split("."))), f"{key}: {message}")
            for key, message in find_contradictions(config, skip_keys=invalid_keys)
        ]
        return config, invalid_keys

    def parse_schema(self) -> RunConfig:
        return RunConfig.model_validate_json(to_json(self.content, inf_nan_mode="constants"))

    def _drop(self, paths: Iterable[KeyPath]) -> None:
        """Remove these sections and fields of sections."""
        for path in paths:
            section = self.content.get(path[0])
            if len(path) > 1 and isinstance(section, dict):
                del section[path[-1]]
            else:
                self.content.pop(path[0], None)

    def describe(self, error: ValidationError) -> Iterator[Problem]:
        by_path: dict[KeyPath, list[ErrorDetails]] = {}
        for details in error.errors(include_url=False):
            by_path.setdefault(self._strip_union_members(details["loc"]), []).append(details)
        for path, path_errors in by_path.items():
            if any(other[: len(path)] == path and other != path for other in by_path):
                continue  # an error of another union member, which the user did not mean
            yield Problem(self.where(path), f"{'.'.join(path)}: {_format_errors(path, path_errors)}")

    def _strip_union_members(self, location: tuple[int | str, ...]) -> KeyPath:
        """Return `location` without the names of union members that pydantic adds."""
        path: KeyPath = ()
        inside: Any = self.content
        for part in location:
            if isinstance(inside, dict) and part in inside:
                inside = inside[part]
            elif isinstance(inside, list) and isinstance(part, int) and part < len(inside):
                inside = inside[part]
            else:
                continue
            path += (str(part),)
        return path


def _format_errors(path: KeyPath, errors: list[ErrorDetails]) -> str:
    if any(details["type"] == "extra_forbidden" for details in errors):
        return f"unknown key{_suggest_key(path)}"
    if any(details["type"] == "missing" for details in errors):
        return f"too few values; found {errors[0]['input']!r}"
    texts = dict.fromkeys(
        details["msg"].removeprefix("Value error, ").removeprefix("Input should be ") for details in errors
    )
    return f"expected {' or '.join(texts)}; found {errors[0]['input']!r}"


def _suggest_key(path: KeyPath) -> str:
    """Return `; did you mean ...?` with the closest key of the same section, else of any section."""
    known = list(_list_keys(RunConfig))
    section = ".".join(path[:-1])
    here = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == section]
    if close := difflib.get_close_matches(path[-1], here, n=1):
        return f"; did you mean {'.'.join((*path[:-1], close[0]))}?"
    elsewhere = {key.rpartition(".")[2]: key for key in known}
    close = difflib.get_close_matches(path[-1], elsewhere, n=1)
    return f"; did you mean {elsewhere[close[0]]}?" if close else f"; {section or 'a config'} has {', '.join(here)}"


def _list_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _list_keys(field.annotation, f"{prefix}{name}.")


def _suggest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ";"
