"""XLA flags that a program on CPU wants to set before JAX starts.

XLA:CPU of some jaxlib versions fuses with a library, YNNPACK, that silently miscompiles the batched
pullbacks of some models (relative errors around 100 %) and makes convolutions about twice as slow.
An empty list of what it may fuse turns that off.
"""

import importlib.metadata
import importlib.util
import os

_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
# XLA aborts the process at a flag it doesn't know, so only versions that have been tried.
_VERSIONS = ("0.10.2",)


def set_cpu_defaults() -> None:
    """Turns off the faulty fusions in ``XLA_FLAGS``, unless the user has set that flag.

    Call it in a program or a test configuration before JAX's backend starts, that is, before the
    first array is made; importing ``jax`` doesn't start it. The library never calls it on import.
    It does nothing for other versions of jaxlib, and nothing beside libtpu, which reads
    ``XLA_FLAGS`` as well and is of another version.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _FLAG in flags or importlib.util.find_spec("libtpu") is not None:
        return
    try:
        version = importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return
    if version in _VERSIONS:
        os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}=".strip()
