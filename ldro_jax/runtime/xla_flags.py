"""XLA flags that a program on CPU wants to set before JAX starts.

XLA:CPU of some jaxlib versions fuses with a library, YNNPACK, that makes convolutions slow, and in
0.10.2 silently miscompiles the batched pullbacks of some models (relative errors around 100 %). An
empty list of what it may fuse turns that off.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys

from ldro_jax.runtime import hashing, paths

_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_SECONDS = 60
# A process that XLA aborts would leave its memory in a file.
_TRIAL = """
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, OSError, ValueError):
    pass
import jax
jax.devices("cpu")
"""


def set_cpu_defaults() -> None:
    """Turns off the faulty fusions in ``XLA_FLAGS``, unless the user has set that flag.

    Call it in a program or a test configuration before JAX's backend starts, that is, before the
    first array is made; importing ``jax`` doesn't start it. The library never calls it on import.
    It does nothing where jaxlib doesn't have the flag, which takes a few seconds to find out the
    first time, and nothing beside libtpu, which reads ``XLA_FLAGS`` as well and is of another
    version.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _FLAG in flags or importlib.util.find_spec("libtpu") is not None:
        return
    if _is_known():
        os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}=".strip()


def miscompiles() -> bool:
    """Whether XLA:CPU may silently miscompile batched pullbacks in this process."""
    flags = os.environ.get("XLA_FLAGS", "")
    return importlib.metadata.version("jaxlib") == "0.10.2" and _FLAG not in flags


def _is_known() -> bool:
    """Whether this jaxlib has the flag, as remembered from an earlier trial or from one now."""
    spec = importlib.util.find_spec("jaxlib")
    if spec is None:
        return False
    installed = f"{_FLAG} {importlib.metadata.version('jaxlib')} {spec.origin}"
    directory = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ldro_jax/xla_flags")
    # Who has no home, or can't write there, tries each time.
    try:
        file = directory.expanduser() / hashing.short(installed, 32)
    except RuntimeError:
        return bool(_tried())
    with contextlib.suppress(OSError, UnicodeError):
        known = {"yes": True, "no": False}.get(file.read_text())
        if known is not None:
            return known
    known = _tried()
    if known is not None:
        with contextlib.suppress(OSError):
            paths.write(file, "yes" if known else "no")
    return bool(known)


def _tried() -> bool | None:
    """Whether JAX starts with the flag; ``None`` if it fails for another reason."""
    # XLA aborts the process at a flag that it doesn't know, so another process has to try.
    environment = os.environ | {"XLA_FLAGS": f"{_FLAG}=", "JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode == 0:
        return True
    return False if _FLAG.encode() in done.stderr else None
