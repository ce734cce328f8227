"""Arguments of an experiment, from those of its parts."""

from ldro_jax.experiments.arguments import MOVED, Directories, Report
from ldro_jax.training import Batches


def parts(directory, **options):
    """The options, with those of batches, report and directories in objects."""
    given = {"Batches": {}, "Report": {}, "Directories": {}}
    for name in MOVED.keys() & options.keys():
        owner, field = MOVED[name].split(".")
        given[owner][field] = options.pop(name)
    return options | {
        "batches": Batches(**given["Batches"]),
        "report": Report(**given["Report"]),
        "output_dir": Directories(directory, **given["Directories"]),
    }
