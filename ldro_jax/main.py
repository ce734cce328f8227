"""Command line: runs experiments, and shows what came out.

::

    ldro-jax list                         # methods, and experiments that come with the package
    ldro-jax run digits --output_dir=/tmp/digits
    ldro-jax watch /tmp/digits            # a page of what is there so far, while it trains
    ldro-jax report /tmp/digits           # its report again
    ldro-jax compare /tmp/digits /tmp/other --output_dir=/tmp/both
    ldro-jax evaluate /tmp/digits         # the parameters that are kept, and how good they are
    ldro-jax export /tmp/digits           # the best of them, as a .npz file

``ldro-jax COMMAND --help`` says more. Without a command it runs what gin files describe::

    python -m ldro_jax.main --gin_file=gin_configs/experiments/digits.gin --output_dir=/tmp/digits

A run that was interrupted goes on where it stopped: give the same command again.

Gin files are code: they can import modules and call functions. Run only those that you trust.
"""

from ldro_jax.runtime import printing, signals

if __name__ == "__main__":
    printing.open_all()
    signals.end_at_once()

import os
import sys

from absl import app, flags, logging

import ldro_jax

_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file",
    None,
    "A gin file, a path from here or from the clone; repeatable. Gin files are code, which can "
    "import and call: run only those that you trust.",
    required=True,
)
_GIN_BINDINGS = flags.DEFINE_multi_string(
    "gin_bindings", [], "A gin binding, NAME=VALUE; also written --gin.NAME=VALUE; repeatable."
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Directory for everything that comes out, here or gs://...", required=True
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory of the data set, where one is needed.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "This is one of several processes that train together. On a TPU pod slice and under Slurm they "
    "find each other; elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say.",
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite",
    False,
    "Delete what an earlier run left in output_dir, when everything else is found to be right.",
)

# absl's own help exits with status 1, and shows flags of other modules in an installed script.
_HELP = {"--help", "-help", "--helpshort", "-h", "-?"}


def main(argv: list[str]) -> None:
    """Runs the experiment; errors that a user can mend are one line, without a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    # These imports take seconds, in which a signal must already be heeded.
    from ldro_jax import configuration
    from ldro_jax.runtime import preemption, xla_flags

    # Orbax describes every save at the level INFO.
    logging.set_verbosity(logging.WARNING)
    xla_flags.set_cpu_defaults()
    try:
        _run()
    except KeyboardInterrupt:
        printing.say(f"\nInterrupted. {signals.advice}", error=True)
        # As a shell reports a process that Ctrl-C ended.
        sys.exit(130)
    except preemption.PreemptedError as error:
        message = configuration.explain(error)
        printing.say(f"\n{message} The same command goes on from there.", error=True)
        sys.exit(error.exit_status)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("LDRO_JAX_TRACEBACK"):
            raise
        message = configuration.explain(error)
        sys.exit(f"Error: {message}\n(LDRO_JAX_TRACEBACK=1 shows where.)")


def _run() -> None:
    from ldro_jax import configuration
    from ldro_jax.experiments.arguments import Directories
    from ldro_jax.records import output_dir
    from ldro_jax.runtime import processes

    if _DISTRIBUTED.value:
        processes.join()
    experiment = configuration.load(_GIN_FILE.value, _GIN_BINDINGS.value)
    config_text = configuration.text()
    output = output_dir.OutputDir(_OUTPUT_DIR.value, config_text, overwrite=_OVERWRITE.value)
    if (data_dir := _DATA_DIR.value) is not None and not data_dir.strip():
        raise ValueError("--data_dir is empty. Is it a variable that isn't set? Name a directory.")
    output.check()

    def ready():
        output.claim()
        kept = f"What is in {output.path} is kept; the same command goes on from there."
        signals.advice = kept

    try:
        experiment(
            output_dir=Directories(output.path, data_dir, config_text=config_text, ready=ready)
        )
    finally:
        output.close()


def _usage() -> str:
    ours = flags.FLAGS.find_module_defining_flag(_GIN_FILE.name)
    _, _, described = flags.FLAGS.module_help(ours).strip().partition("\n")
    return f"{(__doc__ or '').strip()}\n\nFlags:\n\n{described}\n\n--helpfull lists all flags."


def run() -> None:
    """Entry point of the console script."""
    printing.open_all()
    signals.end_at_once()
    argv = sys.argv[1:]
    if argv and not argv[0].startswith("-"):
        from ldro_jax import commands

        if (argv := commands.main(argv)) is None:
            return
    elif not argv or _HELP & set(argv):
        printing.say(_usage(), error=not argv)
        return None if argv else sys.exit(1)
    elif argv == ["--version"]:
        printing.say(f"ldro-jax {ldro_jax.__version__}")
        return
    from ldro_jax.runtime import extras

    try:
        extras.need("gin", *extras.TRAINER)
    except ModuleNotFoundError as error:
        sys.exit(f"Error: {error}")
    from ldro_jax import configuration

    app.run(main, argv=[sys.argv[0], *configuration.rewrite_gin_flags(argv)])


if __name__ == "__main__":
    run()
