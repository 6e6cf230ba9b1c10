"""The command line of a run: its flags, and the config that they describe."""

import re
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from selfloop_jax.config.parse import check_override, share_folder, typed
from selfloop_jax.config.schema import Config
from selfloop_jax.config.stored import read_config
from selfloop_jax.config.validate import check, local_path
from selfloop_jax.errors import UsageError


def parse_config(argv: list[str]) -> Config:
    """The config that a command line describes; UsageError where it, or the config, is refused."""
    config, _ = config_and_workdir(parse_flags(argv))
    check(config)
    return config


def parse_flags(argv: list[str]) -> flags.FlagValues:
    """The flags that `argv` gives; UsageError on whatever does not fit.

    They are defined anew at each call, since every override of a config defines a flag of its own.
    """
    _check_config_flags(argv)
    options = flags.FlagValues()
    try:
        config_flags.DEFINE_config_file("config", flag_values=options, sys_argv=argv)
        flags.DEFINE_string("workdir", None, "", flag_values=options)
        flags.DEFINE_integer("replay", None, "", lower_bound=0, flag_values=options)
        flags.DEFINE_bool("dry_run", False, "", flag_values=options)
        flags.DEFINE_bool("accept_manifest", False, "", flag_values=options)
        rest = options(argv)[1:]
    except (AttributeError, KeyError) as error:
        raise UsageError(_unknown_field(str(error.args[0]), argv)) from error
    except (flags.Error, TypeError, ValueError, OSError, ImportError, SyntaxError) as error:
        raise UsageError(str(error)) from error
    if rest:
        raise UsageError(f"argument {rest[0]}: must be a flag, --name=value")
    _check_contradictions(options)
    return options


def config_and_workdir(options: flags.FlagValues) -> tuple[Config, Path]:
    """The config that the flags describe, or a replay finds in the workdir; and the workdir."""
    workdir = local_path("--workdir", options.workdir) if options.workdir else None
    if options.config is None:
        if options.replay is None or workdir is None:
            raise UsageError("--config: missing; must be a file, for example configs/quickstart.py")
        return read_config(workdir), workdir
    file, _, words = Path(config_flags.get_config_filename(options["config"])).name.partition(".py")
    # Variants of one config get folders of their own, in characters that every system allows.
    name = file + words.replace(":", "-").replace(",", "-")
    return typed(options.config), workdir or Path("runs") / name


def given(options: flags.FlagValues) -> list[str]:
    """Dotted names of the fields that the command line sets."""
    names = [name for name in options if name.startswith("config.")]
    return [name.removeprefix("config.") for name in names if options[name].present]


def _check_config_flags(argv: list[str]) -> None:
    """Refuses a missing config file, and overrides before --config: they would be ignored."""
    seen = False
    for argument, following in zip(argv[1:], [*argv[2:], ""], strict=True):
        name, _, value = argument.lstrip("-").partition("=")
        if name == "config":
            seen = True
            value = value or following  # --config FILE
            path = value.partition(":")[0]
            if not Path(path).is_file():
                raise UsageError(
                    f"--config={value}: must be a file, for example configs/quickstart.py"
                )
            share_folder(Path(path))
        elif name.startswith("config.") and not seen:
            raise UsageError(f"{argument}: must come after --config")
        elif name.startswith("config."):
            check_override(name.removeprefix("config."), value)


def _check_contradictions(options: flags.FlagValues) -> None:
    """Refuses flags of which one would be ignored."""
    modes = [("--dry_run", options.dry_run), ("--replay", options.replay is not None)]
    # Of these flags, in this order, the first makes the program ignore the others.
    given = [name for name, on in [*modes, ("--accept_manifest", options.accept_manifest)] if on]
    if len(given) > 1:
        raise UsageError(f"{given[1]}: must be left out with {given[0]}")


def _unknown_field(message: str, argv: list[str]) -> str:
    """ml_collections names the last part of an unknown field; this names the whole override."""
    names = re.findall(r"""['"](\w+)""", message)
    fields = [argument.lstrip("-").partition("=")[0] for argument in argv[1:]]
    field = next((f for f in fields if names and names[0] in f.split(".")[1:]), "--config")
    close = [name for name in names if name != names[0]]
    hint = f"did you mean {close[0]}?" if close else "--dry_run lists all fields"
    return f"{field.removeprefix('config.')}: unknown field; {hint}"
