"""Arguments of an experiment, from those of its parts."""

import dataclasses

from ldro_jax.experiments.arguments import Directories, Report
from ldro_jax.training import Batches


def parts(directory, **options):
    """The options, with those of batches, report and directories in objects.

    The size of the batches is `batch_size` and the data's directory `data_dir`.
    """
    called = {"batch_size": "size", "data_dir": "data"}
    options = {called.get(name, name): value for name, value in options.items()}

    def made(kind, **more):
        names = {field.name for field in dataclasses.fields(kind)} & options.keys()
        return kind(**more, **{name: options.pop(name) for name in names})

    parts = {
        "batches": made(Batches),
        "report": made(Report),
        "output_dir": made(Directories, output=directory),
    }
    return options | parts
