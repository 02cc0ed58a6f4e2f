"""How the commands read their options: tyro, over dataclasses, those of the settings above all.

Every field is an option, such as `--train.batch-size`, and its help is the comment beside the field. So
nothing is described twice, and a new setting is an option as soon as it is there.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import tyro

from Conf import choose, conf, in_space
from Libraries.Networks import journal_network
from Libraries.Runs import Settings, changed, find_diffusion
from Libraries.Runs.MusicRequest import SHORT, begun_sampler
from Libraries.Runs.Run import Run, named_run
from Libraries.Utils import set_log_level

UNFIT = 2  # exit code

Values = TypeVar("Values")
AllSettings = Annotated[Settings, tyro.conf.arg(name="")]  # `--train.seed`, not `--settings.train.seed`
Output = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
Folder = Annotated[Path, tyro.conf.Positional]


def read(options: type[Values], arguments: Sequence[str], description: str | None, **defaults: Any) -> Values:
    """Return a command's options; the process ends with exit code 2 and the reason if they do not fit.

    Args:
        options: a dataclass, whose fields are the options.
        arguments: what was typed after the command.
        description: what `--help` says first.
        defaults: of fields that have none, or others, in the dataclass.
    """
    needed = {field.name for field in fields(options) if field.default is MISSING} - defaults.keys()
    try:
        return tyro.cli(
            tyro.conf.AvoidSubcommands[options],  # a network keeps its class; `--network` chooses another
            prog=sys.argv[0], args=arguments, description=description,
            default=options(**defaults, **dict.fromkeys(needed, tyro.MISSING)),
        )  # fmt: skip
    except ValueError as error:
        refuse(error)


def read_settings(
    options: type[Values], arguments: Sequence[str], description: str | None, preset: str = conf.preset
) -> Values:
    """Return options of a dataclass with a field `settings`, which begin as a preset.

    `--preset`, `--space` and `--network NAME` choose what the settings begin as; all others change them.

    Args:
        preset: the one without `--preset`.
    """
    chooser = argparse.ArgumentParser(prog=sys.argv[0], add_help=False, allow_abbrev=False)
    for name, default in (("preset", preset), ("space", None), ("network", None)):
        chooser.add_argument(f"--{name}", default=default)
    chosen, others = chooser.parse_known_args(arguments)
    try:
        settings = choose(chosen.preset)
        settings = in_space(settings, chosen.space) if chosen.space else settings
        if chosen.network:
            network = journal_network(chosen.network, settings.network.num_classes)
            settings = changed(settings, {"network": network})
    except ValueError as error:
        refuse(error)
    found = read(options, others, description, settings=settings)
    set_log_level(found.settings.log_level)
    return found


def read_of_run(options: type[Values], arguments: Sequence[str], description: str | None) -> Values:
    """Return options of a dataclass with a field `run` and parts of the settings, which begin as that run's.

    `run` becomes the folder. `--sampler NAME` begins with another sampler at its best; all others change what
    is begun with.
    """
    chooser = argparse.ArgumentParser(prog=sys.argv[0], add_help=False, allow_abbrev=False)
    chooser.add_argument("--run", default=options.run)
    chooser.add_argument("--sampler")
    chosen, others = chooser.parse_known_args(arguments)
    folder = folder_of(str(chosen.run))
    settings = Run(folder).settings
    parts = {field.name for field in fields(options)} & vars(settings).keys()
    begun = {name: getattr(settings, name) for name in parts}
    begun |= {"run": folder, "sampler": begun_sampler(settings, chosen.sampler)}
    return read(options, [_in_full(argument) for argument in others], description, **begun)


def folder_of(run: str) -> Path:
    """Return the folder of a run: the newest in Conf.py's space, one of that path, or one of that name."""
    if run == "newest":
        return find_diffusion(conf)
    return Path(run) if Path(run).is_dir() else named_run(conf.models_dir, "diffusion", run)


def _in_full(argument: str) -> str:
    name, equals, value = argument.partition("=")
    path = SHORT.get(name.removeprefix("--"))
    return (f"--{path.replace('_', '-')}" if path else name) + equals + value


def refuse(error: Exception) -> NoReturn:
    """End the process: the options do not fit, for this reason."""
    print(f"{sys.argv[0]}: {error}", file=sys.stderr)
    sys.exit(UNFIT)
