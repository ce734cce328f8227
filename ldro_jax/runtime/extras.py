"""What a core install lacks, and how to get it."""

import importlib.util

# What `compare` and the command line import.
TRAINER = ("flax", "orbax", "tensorboardX", "tqdm", "pandas", "etils")


def need(*modules: str) -> None:
    """Raises ``ModuleNotFoundError`` unless modules of the extra ``trainer`` are installed.

    It names the command that installs them. No module is imported.
    """
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"The trainer needs {name}, which isn't installed: "
                "pip install 'ldro-jax[trainer]', or '.[trainer]' in a clone.",
                name=name,
            )
