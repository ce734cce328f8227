"""Leaves out modules whose library is absent, and says how many faults were survived.

pytest imports all modules for doctests.
"""

import importlib.util
import pathlib

# The tests' own directory of that name is a package without a file.
_T5X = importlib.util.find_spec("t5x")
collect_ignore_glob = (
    [] if _T5X and _T5X.origin else ["ldro_jax/t5x/*", "tests/helpers/tiny_t5x.py"]
)
collect_ignore_glob += [
    f"ldro_jax/integrations/{trainer}.py"
    for trainer in ("kauldron", "keras", "maxtext", "tunix")
    if importlib.util.find_spec(trainer) is None
]


def pytest_ignore_collect(collection_path, config):
    """With -m smoke, the doctests; of the tests see the conftest there."""
    package = pathlib.Path(__file__).parent / "ldro_jax"
    if config.option.markexpr == "smoke" and collection_path.is_relative_to(package):
        return True
    return None


def pytest_terminal_summary(terminalreporter):
    """Prints what the tests of faults have counted, from all processes."""
    reports = [r for found in terminalreporter.stats.values() for r in found]
    properties = [p for r in reports for p in getattr(r, "user_properties", ()) if r.when == "call"]
    for name, line in properties:
        if name == "faults":
            terminalreporter.write_line(line)
