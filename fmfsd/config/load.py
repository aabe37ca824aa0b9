"""From a preset's name or a file, and `a.b=c` overrides, to one valid RunConfig or to everything that is wrong."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_json

from fmfsd.config.consistency import contradictions
from fmfsd.config.methods import METHODS
from fmfsd.config.names import TIMM
from fmfsd.config.schema import DataConfig, RunConfig
from fmfsd.config.strict_yaml import MAX_DEPTH, Document, KeyPath, parse, read_document
from fmfsd.errors import ConfigError, Problem
from fmfsd.pretrained_names import absolute_source, expand_backbone, names_weights

PRESETS = Path(__file__).parent.parent / "presets"


class InvalidConfigError(ConfigError):
    """A config with wrong values. `draft` has defaults in place of those that the schema refuses, whose dotted keys are
    `refused`: what does not depend on them can still be checked."""

    def __init__(self, problems: Sequence[Problem], draft: RunConfig, refused: Sequence[str]) -> None:
        super().__init__(problems)
        self.draft, self.refused = draft, tuple(refused)


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def config_name(source: str) -> str:
    """What a run of this preset or file is called: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", Path(source).stem)[:64]


def load_config(source: str, overrides: Sequence[str] = (), *, data_root: str = "data") -> RunConfig:
    """The resolved config that `source`, a preset's name or a YAML file, describes.

    `overrides` are `a.b=c` with c as YAML; `data_root` stands in where the config names none.
    Raises ConfigError with every problem, each with its file and line.
    """
    draft = _Draft(read_document(_find(source)))
    draft.override(overrides)
    draft.fill_in_root(data_root)
    draft.expand_backbone()
    draft.apply_method()
    config, refused = draft.judged()
    config = draft.resolved(config)
    if draft.problems:
        raise InvalidConfigError(draft.problems, config, refused)
    return config


def checked_data(**values: Any) -> DataConfig:
    """The data section of these values, `root` among them; classes may come later. ConfigError with every problem."""
    draft = _Draft(Document({"data": values}, {}, ""))
    try:
        config = draft.in_schema()
    except ValidationError as error:
        raise ConfigError(list(draft.described(error))) from error
    of_data_alone = contradictions(config, unknown=("data.classes", "method", "model", "optim", "train"))
    if problems := [Problem("", f"{key}: {message}") for key, message in of_data_alone]:
        raise ConfigError(problems)
    return config.data


def dump_config(config: RunConfig) -> str:
    """`config` as YAML that `load_config` reads back to an equal config."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None))


def dump_given(source: str, overrides: Sequence[str] = (), *, data_root: str = "data") -> str:
    """As YAML what was said, without what it means: so a method may still be changed. Raises as `load_config` does."""
    config = load_config(source, overrides, data_root=data_root)
    draft = _Draft(read_document(_find(source)))
    draft.override(overrides)
    draft.content.setdefault("data", {})["root"] = config.data.root
    if config.train.init_from is not None:
        draft.content["train"]["init_from"] = config.train.init_from
    return str(yaml.safe_dump(draft.content, sort_keys=False, default_flow_style=None))


def _find(source: str) -> Path:
    if "/" in source or source.endswith((".yaml", ".yml")):
        return Path(source)
    if source in preset_names():
        return PRESETS / f"{source}.yaml"
    raise ConfigError(
        f"no preset is called {source!r}{_did_you_mean(source, preset_names())} presets: {', '.join(preset_names())}"
    )


class _Draft:
    """A config that is not checked yet, with the place that each value came from."""

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
        return self.document.where(path)

    def override(self, overrides: Sequence[str]) -> None:
        for text in overrides:
            key, equals, value = text.partition("=")
            try:
                path = tuple(key.split("."))
                if not (equals and all(path) and key.isprintable() and len(path) <= MAX_DEPTH):
                    raise ConfigError([Problem("", "expected a.b=c, as in optim.lr=0.05")])
                self._put(path, parse(value, f"--set {text}").content, f"--set {text}")
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
        """`model.backbone: timm/local-dir:PATH` stands for the model of that folder with its weights."""
        model = self.content.get("model")
        if not isinstance(model, dict) or not names_weights(model.get("backbone")):
            return
        try:
            backbone, source = expand_backbone(model["backbone"])
        except ValueError as error:
            self.problems.append(Problem(self.where(("model", "backbone")), f"model.backbone: {error}"))
            backbone, source = f"{TIMM}resnet18", True
        model["backbone"] = backbone
        model.setdefault("pretrained", source)

    def apply_method(self) -> None:
        """Fill in what the method means or suggests; a value that it does not mean is a problem."""
        method = self.content.get("method", RunConfig.model_fields["method"].default)
        known = METHODS.get(method) if isinstance(method, str) else None
        if known is None:
            return
        for dotted, value in known.suggests.items():
            self._filled_in(dotted, value)
        for dotted, values in known.means.items():
            found = self._filled_in(dotted, values[0])
            if found not in values:
                message = f"{dotted}: method {method} means {' or '.join(map(str, values))}, found {found}"
                where = self.where(tuple(dotted.split(".")))
                self.problems.append(Problem(where, f"{message}: change one of the two"))

    def _filled_in(self, dotted: str, value: Any) -> Any:
        """What the config says of this key, and `value` if it says nothing."""
        section, key = dotted.split(".")
        values = self.content.setdefault(section, {})
        return values.setdefault(key, value) if isinstance(values, dict) else value

    def absolute(self, path: str | None, key: KeyPath) -> str | None:
        """Workers have another working directory."""
        try:
            return None if path is None else str(Path(path).expanduser().absolute())
        except RuntimeError as error:
            raise ConfigError([Problem(self.where(key), f"{'.'.join(key)}: {path}: there is no such user")]) from error

    def resolved(self, config: RunConfig) -> RunConfig:
        """`config` with absolute paths, and the branches that it means."""
        root = self.absolute(config.data.root, ("data", "root"))
        init_from = self.absolute(config.train.init_from, ("train", "init_from"))
        pretrained = absolute_source(config.model.pretrained)
        return config.model_copy(
            update={
                "data": config.data.model_copy(update={"root": root}),
                "model": config.model.model_copy(update={"branches": config.branches, "pretrained": pretrained}),
                "train": config.train.model_copy(update={"init_from": init_from}),
            }
        )

    def judged(self) -> tuple[RunConfig, list[str]]:
        """Collect every problem: of values that the schema takes, also what contradicts one another.

        Returns the config with defaults for the values that it refuses, and their keys.
        """
        refused: set[KeyPath] = set()
        try:
            config = self.in_schema()
        except ValidationError as error:
            self.problems += self.described(error)
            refused = {self._keys(details["loc"])[:2] for details in error.errors()}
            self._drop(refused)
            config = self.in_schema()
        unknown = [".".join(path) for path in refused]
        self.problems += [
            Problem(self.where(tuple(key.split("."))), f"{key}: {message}")
            for key, message in contradictions(config, unknown=unknown)
        ]
        return config, unknown

    def in_schema(self) -> RunConfig:
        return RunConfig.model_validate_json(to_json(self.content, inf_nan_mode="constants"))

    def _drop(self, paths: Iterable[KeyPath]) -> None:
        """Take out these sections and fields of sections."""
        for path in paths:
            section = self.content.get(path[0])
            if len(path) > 1 and isinstance(section, dict):
                del section[path[-1]]
            else:
                self.content.pop(path[0], None)

    def described(self, error: ValidationError) -> Iterator[Problem]:
        by_path: dict[KeyPath, list[ErrorDetails]] = {}
        for details in error.errors(include_url=False):
            by_path.setdefault(self._keys(details["loc"]), []).append(details)
        for path, found in by_path.items():
            if any(other[: len(path)] == path and other != path for other in by_path):
                continue  # another form of the value, which was not meant
            yield Problem(self.where(path), f"{'.'.join(path)}: {_message(path, found)}")

    def _keys(self, location: tuple[int | str, ...]) -> KeyPath:
        """`location` without the names of union members that pydantic puts into it."""
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


def _message(path: KeyPath, found: list[ErrorDetails]) -> str:
    if any(details["type"] == "extra_forbidden" for details in found):
        return f"unknown key{_nearest_key(path)}"
    if any(details["type"] == "missing" for details in found):
        return f"too few values; found {found[0]['input']!r}"
    texts = dict.fromkeys(
        details["msg"].removeprefix("Value error, ").removeprefix("Input should be ") for details in found
    )
    return f"expected {' or '.join(texts)}; found {found[0]['input']!r}"


def _nearest_key(path: KeyPath) -> str:
    """`; did you mean ...?` with the closest key of the same section, else of any."""
    known = list(_known_keys(RunConfig))
    section = ".".join(path[:-1])
    here = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == section]
    if close := difflib.get_close_matches(path[-1], here, n=1):
        return f"; did you mean {'.'.join((*path[:-1], close[0]))}?"
    elsewhere = {key.rpartition(".")[2]: key for key in known}
    close = difflib.get_close_matches(path[-1], elsewhere, n=1)
    return f"; did you mean {elsewhere[close[0]]}?" if close else f"; {section or 'a config'} has {', '.join(here)}"


def _known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_keys(field.annotation, f"{prefix}{name}.")


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ";"
