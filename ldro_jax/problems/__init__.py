"""What is trained: tasks, a model, a loss for each row and metrics, behind one interface."""

# ruff: noqa: E402
from ldro_jax.runtime import extras

# Before what needs it is imported.
extras.need("flax")

from ldro_jax.problems.arrays import ArrayProblem, from_arrays
from ldro_jax.problems.base import Metric, OnDevice, Problem
from ldro_jax.problems.classifiers import accuracy, classification, cross_entropy
from ldro_jax.problems.grouped import groups
from ldro_jax.problems.iterators import from_iterator
from ldro_jax.problems.language_models import LanguageModel, language_model
from ldro_jax.problems.models import Functions
from ldro_jax.problems.objectives import CVaR, Perturbed, Reconstruction
from ldro_jax.problems.tables import Table, TableProblem
from ldro_jax.tasks.source import Source

__all__ = [
    "ArrayProblem",
    "CVaR",
    "Functions",
    "LanguageModel",
    "Metric",
    "OnDevice",
    "Perturbed",
    "Problem",
    "Reconstruction",
    "Source",
    "Table",
    "TableProblem",
    "accuracy",
    "classification",
    "cross_entropy",
    "from_arrays",
    "from_iterator",
    "groups",
    "language_model",
]
