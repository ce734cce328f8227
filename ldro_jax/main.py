"""Command line: runs the experiment that gin files describe.

For example::

    python -m ldro_jax.main --gin_file=gin_configs/experiments/digits.gin --output_dir=/tmp/digits

A run that was interrupted goes on where it stopped: give the same command again.
"""

import os
import re
import sys
from collections.abc import Callable

from absl import app, flags, logging

from ldro_jax import _xla_flags, configuration, paths
from ldro_jax.training import preemption, processes

_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", None, "A gin file, a path from here or from the clone; repeatable.", required=True
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
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Delete what an earlier run left in output_dir.")


def main(argv: list[str]) -> None:
    """Runs the experiment; errors that a user can mend are one line, without a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    # Orbax describes every save at the level INFO.
    logging.set_verbosity(logging.WARNING)
    _xla_flags.set_cpu_defaults()
    advice = ""
    try:
        if _DISTRIBUTED.value:
            processes.join()
        experiment: Callable = configuration.load(_GIN_FILE.value, _GIN_BINDINGS.value)
        config_text = configuration.text()
        output_dir = paths.absolute(_OUTPUT_DIR.value)
        if processes.is_first():
            output_dir = configuration.prepare_output_dir(
                output_dir, config_text, overwrite=_OVERWRITE.value
            )
        processes.wait_for_all("output_dir")
        advice = f"What is in {output_dir} is kept; the same command goes on from there."
        experiment(output_dir=output_dir, data_dir=_DATA_DIR.value, config_text=config_text)
    except KeyboardInterrupt:
        print(f"\nInterrupted. {advice}", file=sys.stderr)
        # As a shell reports a process that Ctrl-C ended.
        sys.exit(130)
    except preemption.PreemptedError as error:
        print(f"{error} {advice}", file=sys.stderr)
        # As a shell reports a process that SIGTERM ended.
        sys.exit(143)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("LDRO_JAX_TRACEBACK"):
            raise
        # gin adds the function that was called, with its address in memory.
        message = re.sub(r" \(<.*>\)", "", str(error))
        if isinstance(error, OSError) and advice:
            message = f"{message}\n{advice}"
        sys.exit(f"Error: {message}\n(LDRO_JAX_TRACEBACK=1 shows where.)")


def run() -> None:
    """Entry point of the console script."""
    app.run(main, argv=configuration.rewrite_gin_flags(sys.argv))


if __name__ == "__main__":
    run()
