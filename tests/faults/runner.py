"""Runs the command line many times, each in a process of its own, and kills it where it is told.

Importing everything takes longer than a tiny run, so this program does it once, and forks. It reads
one job a line, a JSON object, and answers each with a line when that has ended:

* ``args``: the command line; or ``--kind=NAME``, one of :mod:`kinds`, and the output directory.
* ``log``: a file for what it prints.
* ``watched``: directories. The operations on files there are counted.
* ``kill``: the number of the operation before which the process is killed, if it comes to that.
* ``delay``: seconds after which it is killed.
* ``report``: whether to draw the report, which takes longer than everything else.

The answer has the process's ``status`` and ``operations``, how many there were. Operations are
those of Python: what TensorStore does in between, in a directory that isn't there under its name
yet, is hit by delays alone.
"""

import json
import os
import signal
import sys
import threading

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _watch(job) -> None:
    """Counts the operations in this process from here on."""
    lock, count = threading.Lock(), [0]
    counter = os.open(job["log"] + ".count", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    watched = tuple(job["watched"])

    def is_watched(event, args):
        if event == "open":
            path, _, flags = args
            named = isinstance(path, str) and path.startswith(watched)
            return named and isinstance(flags, int) and flags & _WRITING
        if event not in _EVENTS:
            return False
        # Whole trees are deleted by names that begin in their folder.
        return any(isinstance(x, str) and x.startswith(watched) for x in args) or (
            event in ("os.remove", "os.rmdir") and args[-1] not in (-1, None)
        )

    def hook(event, args):
        if not is_watched(event, args):
            return
        with lock:
            count[0] += 1
            if count[0] == job.get("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            os.pwrite(counter, str(count[0]).encode(), 0)

    sys.addaudithook(hook)


def _run(job) -> None:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    from ldro_jax import main, reporting
    from ldro_jax.runtime import paths

    if not job.get("report"):
        reporting.write_report = lambda results, output_dir, **options: paths.write(
            paths.make(output_dir) / "report.html", "report"
        )
    _watch(job)
    first, *rest = job["args"]
    if first.startswith("--kind="):
        from faults import kinds

        kinds.run(first.removeprefix("--kind="), rest[-1].removeprefix("--output_dir="))
        return
    sys.argv = ["ldro-jax", *job["args"]]
    main.run()


def _import_everything() -> None:
    import jax
    import sklearn.datasets  # noqa: F401

    from ldro_jax import configuration, main  # noqa: F401
    from ldro_jax.records import output_dir  # noqa: F401

    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _import_for_text() -> None:
    """Three times as much again, which the language models alone need."""
    import seqio  # noqa: F401
    import tensorflow  # noqa: F401
    import tensorflow_datasets  # noqa: F401


def serve() -> None:
    """Answers jobs until there are no more."""
    _import_everything()
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if any("multilingual_lm" in arg for arg in job["args"]):
            _import_for_text()
        if not (child := os.fork()):
            try:
                _run(job)
            except SystemExit as error:
                sys.stdout.flush()
                if isinstance(error.code, str):
                    print(error.code, file=sys.stderr, flush=True)
                os._exit(error.code if isinstance(error.code, int) else error.code is not None)
            except BaseException:
                import traceback

                traceback.print_exc()
                sys.stderr.flush()
                os._exit(70)
            os._exit(0)
        timer = threading.Timer(job.get("delay") or 600, os.kill, (child, signal.SIGKILL))
        timer.start()
        _, status = os.waitpid(child, 0)
        timer.cancel()
        with open(job["log"] + ".count") as file:
            operations = int(file.read() or 0)
        answer = {"status": os.waitstatus_to_exitcode(status), "operations": operations}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
