"""Read configs: YAML files, the folders of training runs, and overrides. Imports no Paddle."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from ppcls.commands import same_command
from ppcls.config import Config
from ppcls.config_checks import check_config
from ppcls.errors import ConfigError, suggest
from ppcls.format1 import convert_config, is_config_of_format1
from ppcls.option_names import RENAMED, SYNONYMS
from ppcls.preprocessing import Preprocessing
from ppcls.typed import build_section, option_names

RUN_CONFIG, CHECKPOINTS, WEIGHTS_FILE = "train.yaml", "checkpoints", "model.safetensors"  # in a run's folder
DESCRIPTION = "inference.yml"  # in the folder of an exported model


class _Loader(yaml.SafeLoader):
    """YAML loader that raises an error for two equal keys, of which SafeLoader takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        merge = "tag:yaml.org,2002:merge"  # <<: *anchor, whose options this mapping may replace
        keys = [self.construct_object(key) for key, _ in node.value if key.tag != merge]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the option {key} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def find_config(name: str | Path) -> Path:
    """Return the path of a YAML file: `name` itself, the train.yaml of a run's folder or of a path in its
    checkpoints, or a config of this project by its bare name, such as "EfficientNetB4"."""
    path = Path(name)
    run = run_of_checkpoint(path) or path
    if (run / RUN_CONFIG).is_file():
        return run / RUN_CONFIG
    if path.is_file() or path.name != str(name):
        return path
    home = Path(__file__).parent
    for folder in (home / "configs", home.parent / "configs"):  # in an installed package, in a clone
        own = folder / f"{str(name).removesuffix('.yaml')}.yaml"
        if own.is_file():
            return own
        if folder.is_dir() and not path.is_dir():
            known = sorted(path.stem for path in folder.glob("*.yaml"))
            raise ConfigError(
                f"There is no config file {name}, and no config of this name comes with ppcls. Received: "
                f"{name}; {suggest(str(name), known)}"
            )
    return path


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, a run's folder, or a config of this project by its bare name. Apply overrides such as
    "data.batch_size=64" in their order.

    The train.yaml of a run stands for that run, even if its folder was moved: model.weights is its best
    checkpoint and output_dir its folder, unless an override replaces them. A path in the run's checkpoints,
    such as checkpoints/last, stands for the run with those weights.
    Raises ConfigError for a file that cannot be read, an unknown option (with the nearest valid name), a
    value of the wrong type, an impossible value, or options that contradict each other.
    """
    path = find_config(name)
    tree = _read(path)
    run = find_run(path) if path.name == RUN_CONFIG else None
    if run is not None and isinstance(tree.get("model"), dict):
        tree["model"] |= {"weights": str(_weights_named(run, Path(name))), "variant": None}
        tree["output_dir"] = str(run)
    config = parse_config(tree, overrides)
    _check_replaced_weights(config, overrides, path)
    return config


def _read(path: Path) -> dict:
    """Return the content of a YAML file. Raises ConfigError, with what to do, for anything else."""
    if path.is_dir():
        raise ConfigError(about_folder(path))
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no config file {path}, and no folder of a training run or of an exported model. "
            "Expected: one of these, or the name of a model."
        ) from error
    except OSError as error:
        raise ConfigError(f"The config file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not valid YAML, but a binary file. Weights are given with the model that they belong "
            f"to: {same_command('MODEL', '-o', f'model.weights={path}')}"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}.") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold sections such as 'model:' and 'data:'. Received: {tree!r}")
    if is_config_of_format1(tree):
        tree = convert_config(tree, of_training=path.name == RUN_CONFIG)
    return tree


def about_folder(path: Path) -> str:
    """Return why a folder is not a config, and which paths in it can be given."""
    if is_export(path):
        return (
            f"{path} is an exported model, and this needs the network itself. Expected: the name of a model, "
            "a YAML file or the folder of a training run."
        )
    return (
        f"{path} is not the folder of a training run (it has no {RUN_CONFIG} with {CHECKPOINTS}), and not an "
        f"exported model (it has no {DESCRIPTION}). Expected: one of them, or a YAML file."
    )


def is_export(name: str | Path) -> bool:
    """Return whether this is the folder of an exported model."""
    return (Path(name) / DESCRIPTION).is_file()


def find_run(name: str | Path) -> Path | None:
    """Return the folder of a training run, given as itself or as its train.yaml; None for anything else."""
    path = Path(name)
    folder = path.parent if path.name == RUN_CONFIG else path
    return folder if (folder / RUN_CONFIG).is_file() and (folder / CHECKPOINTS).is_dir() else None


def run_of_checkpoint(path: Path) -> Path | None:
    """Return the folder of the training run that has this path in its checkpoints, or None."""
    homes = [folder.parent for folder in (path, *path.parents) if folder.name == CHECKPOINTS]
    return next(filter(find_run, homes), None)


def best_weights(run: Path) -> Path:
    """Return the path of a run's best weights."""
    return run / CHECKPOINTS / "best" / WEIGHTS_FILE


def _weights_named(run: Path, path: Path) -> Path:
    """Return the weights that a path means: a file or folder in the run's checkpoints, or the best."""
    if path.name == CHECKPOINTS or run_of_checkpoint(path) is None:
        return best_weights(run)
    return path if path.suffix else path / WEIGHTS_FILE


def _check_replaced_weights(config: Config, overrides: Sequence[str], path: Path) -> None:
    """Raise ConfigError if an override names weights that state another preprocessing than the file `path`,
    which was written for other weights. An override of data.preprocessing decides between them."""
    options = {override.partition("=")[0].strip() for override in _listed(overrides)}
    is_decided = any(option == "data" or option.startswith("data.preprocessing") for option in options)
    if config.model.weights is None or not options & {"model", "model.weights"} or is_decided:
        return
    own = _stated_preprocessing(Path(config.model.weights))
    if own is None:
        return
    used, made_for = config.data.preprocessing.resolve(own).to_dict(), own.to_dict()
    for name, value in used.items():
        if value != made_for[name]:
            raise ConfigError(
                f"data.preprocessing.{name} is {value} in {path}, but the weights that model.weights names "
                f"were made for {made_for[name]}. Expected: one preprocessing. Received: "
                f"{config.model.weights}. Give the folder of its run in place of the config; or take the "
                "weights' own, -o data.preprocessing=null, or keep the file's: -o "
                f"data.preprocessing.{name}={value}."
            )


def _stated_preprocessing(weights: Path) -> Preprocessing | None:
    """Return the preprocessing that a file of this project's format states; None for any other file."""
    from safetensors import SafetensorError, safe_open

    file = weights / WEIGHTS_FILE if weights.is_dir() else weights
    if file.suffix != ".safetensors":
        return None
    try:
        with safe_open(file, "numpy") as opened:
            return Preprocessing.from_dict(json.loads((opened.metadata() or {})["preprocessing"]))
    except (OSError, SafetensorError, ValueError, TypeError, KeyError):
        return None  # whoever reads the weights says what is wrong with them


def _listed(overrides: Sequence[str]) -> Sequence[str]:
    return [overrides] if isinstance(overrides, str) else overrides


def parse_config(tree: dict, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a YAML file's content, with overrides. Raises ConfigError as load_config does."""
    for override in _listed(overrides):
        _apply(tree, override)
    config = build_section(Config, tree, RENAMED | _meanings())
    check_config(config)
    return config


def _meanings() -> dict[str, str]:
    """Return what an option that is unknown where it is given may mean, under "*." and its name: that of a
    synonym, or the one option of this name in another section."""
    options = [option for option in option_names(Config) if "." in option]
    names = [option.rpartition(".")[2] for option in options]
    meanings = {word: option for option, words in SYNONYMS.items() for word in words.split()}
    meanings |= {name: option for name, option in zip(names, options, strict=True) if names.count(name) == 1}
    return {f"*.{name}": option for name, option in meanings.items()}


def _apply(tree: dict, override: str) -> None:
    option, equals, text = override.partition("=")
    if not equals or not option.strip():
        raise ConfigError(f"An override has the form section.option=value. Received: {override!r}")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"The value of {override!r} is not valid YAML: {error}") from error
    *sections, name = option.strip().split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if inner is None:
            inner = tree[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{option}: {section} is a value, not a section.")
        tree = inner
    tree[name] = value
