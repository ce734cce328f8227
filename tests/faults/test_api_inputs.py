"""Bad inputs of the Python API: each gives one line, before anything is written or trained.

``api_inputs.txt`` holds an expression a line, and below it the beginning of what the error says.
"""
# ruff: noqa: F401
# The expressions use what is imported here.

import functools
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers import tiny

from ldro_jax import interaction, ldro, problems, reporting, transform, weighting
from ldro_jax.experiments.compare import compare
from ldro_jax.models.cnn import CNN
from ldro_jax.models.decoder import Decoder
from ldro_jax.models.mlp import MLP
from ldro_jax.problems import Metric, OnDevice
from ldro_jax.problems.toy import PointTasks
from ldro_jax.records import perplexity, results
from ldro_jax.reporting import pareto
from ldro_jax.runtime import errors
from ldro_jax.sharding import Layout
from ldro_jax.tasks import base, sequences, synthetic
from ldro_jax.tasks.source import Source
from ldro_jax.training import loop
from ldro_jax.training.method import Method, grid
from ldro_jax.training.schedule import Schedule, epochs

pytestmark = [
    pytest.mark.faults,
    # What is refused may have been computed with before.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

X = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
Y = X[:, 0].copy()
POINTS = jnp.array([[-1.0], [2.0]])
LABELS = np.array([0, 1] * 4, np.int32)
TOKENS = np.arange(1, 9, dtype=np.int32)
ERROR = Metric("error", higher_is_better=False)


class TrainedError(Exception):
    """Nothing was wrong."""


class Nameless:
    """What is called like a function, and has no name."""

    def __call__(self, *args, **options):
        return None


class Rows(Source):
    """A source of any rows."""

    def __init__(self, rows, has_state=False):
        self._rows, self.has_state = rows, has_state

    def rows(self, tasks, indices):
        return self._rows(tasks, indices)


def mse(outputs, rows):
    return (outputs - rows["targets"]) ** 2


def masked(array):
    found = np.ma.array(array)
    found[0] = np.ma.masked
    return found


def loss_fn(params, task_batch):
    return jnp.mean((params[None] - task_batch) ** 2)


def keyed(params, task_batch):
    return loss_fn(params, task_batch["x"])


def own_problem(**attributes):
    """A problem whose attributes and methods are others."""

    def made(name, value):
        if name in ("sizes", "identity"):
            return property(lambda self: value)
        return staticmethod(value) if callable(value) else value

    cls = type("Own", (tiny.Distances,), {k: made(k, v) for k, v in attributes.items()})
    problem = cls()
    if "on_device" in attributes:
        problem.on_device = attributes["on_device"]
    return problem


def update(weights=None, **arguments):
    tx = transform.weighted(weights or weighting.average(), 2)
    return tx.update(None, tx.init(jnp.ones(1)), jnp.ones(1), **arguments)


def exact(**arguments):
    how = arguments.pop("interaction", "auto")
    tx = transform.weighted(weighting.lookahead_exact(0.1), 2, interaction=how)
    return tx.update(None, tx.init(jnp.ones(1)), jnp.ones(1), **arguments)


def data(**options):
    split = base.Split(X, LABELS, np.array([4, 4]))
    splits = dict.fromkeys(("train", "validation", "test"), split)
    return base.MultitaskData(**{"task_names": ("a", "b"), "num_classes": 2, **splits, **options})


def corpus(**options):
    splits = {name: [TOKENS, TOKENS] for name in ("train", "validation", "test")}
    given = {"task_names": ("a", "b"), "vocab_size": 10, "vocabulary": "v", **splits}
    return sequences.Corpus(**given | options)


def evaluated(values):
    program = tiny.stacked(a_problem=tiny.Distances(values=values), size=4)
    return program.evaluate(jnp.ones(1), "test")


def namespace(folder):
    """The names in the expressions."""
    metrics, pd = pytest.importorskip("sklearn.metrics"), pytest.importorskip("pandas")

    def run(**options):
        given = {
            "problem": tiny.Distances(),
            "batch_size": 4,
            "seeds": (0,),
            "optimizer": optax.sgd(0.1),
            "schedule": Schedule(10, 5, 5),
            **options,
        }
        return tiny.run(given.pop("output_dir", folder / "out"), **given)

    def own(layout=None, **attributes):
        return run(problem=own_problem(**attributes), layout=layout)

    def arrays(**options):
        pairs = {"a": (X, Y), "b": (X, Y)}
        given = {
            **dict.fromkeys(("train", "validation", "test"), pairs),
            "model": (lambda key, x: jnp.ones(2), lambda params, x: x @ params),
            "loss": mse,
            "metrics": {ERROR: mse},
            **options,
        }
        return run(problem=problems.from_arrays(given.pop("train"), **given))

    return globals() | {
        "accuracy_score": metrics.accuracy_score,
        "arrays": arrays,
        "Distances": tiny.Distances,
        "FOLDER": folder / "report",
        "hypervolume": pareto.hypervolume,
        "load_results": results.load_results,
        "mean_squared_error": metrics.mean_squared_error,
        "MESH": {"layout": tiny.ONE},
        "non_dominated": pareto.non_dominated,
        "own": own,
        "partial": functools.partial,
        "pd": pd,
        "perplexity": perplexity.perplexity,
        "RECORD": results.Results("a", ["x"], "m", True, []),
        "results": results,
        "run": run,
        "Split": base.Split,
        "summarise_evaluation": results.summarise_evaluation,
        "synthetic": synthetic,
        "take": lambda arrays, key, step, tasks, indices: arrays[tasks],
        "weighted": transform.weighted,
        "WIDE": np.full((8, 2), 2**40),
    }


def groups():
    """Titles, and the pairs of expression and line under each."""
    text = pathlib.Path(__file__).with_name("api_inputs.txt").read_text(encoding="utf-8")
    found = {}
    for line in text.splitlines():
        if line.startswith("# "):
            pairs = found.setdefault(line[2:], [])
        elif line.startswith("    "):
            pairs[-1] = (pairs[-1], line.strip())
        else:
            pairs.append(line)
    return found


@pytest.fixture
def names(tmp_path, monkeypatch):
    def train(*args, **options):
        raise TrainedError

    monkeypatch.setattr(loop, "train", train)
    # What JAX says when it promotes or broadcasts what is wrong is not what a user sees.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield namespace(tmp_path)


def problem_with(expression, line, names):
    try:
        eval(expression, names)
    except (ValueError, TypeError, OSError) as error:
        said = str(error)
        if "\n" in said or " at 0x" in said:
            return f"it isn't one line: {said!r}"
        if type(error) is TypeError and "num_tasks" not in said:
            return f"it is a TypeError: {said}"
        return None if said.startswith(line) else f"it is another line than {line!r}: {said!r}"
    except Exception as error:
        return f"it ends with {type(error).__name__}: {error}"
    return "it is taken"


# All of them trace a good many models.
PARTS = [
    pytest.param(title, every, id=f"{title}, every {every}", marks=marks)
    for title in groups()
    for every, marks in ((10, ()), (1, pytest.mark.heavy))
]


@pytest.mark.parametrize(("title", "every"), PARTS)
def test_each_bad_input_is_one_line_before_anything_is_written(
    title, every, names, tmp_path, survived
):
    problems = []
    for expression, line in groups()[title][::every]:
        problem = problem_with(expression, line, names)
        if problem is None and list(tmp_path.iterdir()):
            problem = "it has written something"
        problems.append(problem and f"{expression}: {problem}")
    survived(title, problems)


GOOD = """
Schedule(np.int64(10), np.int32(5), np.uint8(5), max_nonfinite_steps=np.int64(3))
epochs(np.int64(2), np.int32(5), checkpoint_epochs=np.int16(1))
Layout(data=np.int64(1), model=np.int32(1), fully_sharded=np.bool_(True))
Method("a", "pcgrad", {"seed": np.int64(1)}, interaction_interval=np.int64(2))
weighted(weighting.average(), np.int64(2), interaction_interval=np.int32(1), floor=np.float64(0.1))
ldro.transform(np.int32(2), lookahead_lr=np.float32(1), weight_lr=np.float64(1))
weighting.krum(num_outliers=np.int64(1), num_selected=np.int32(1), squared=np.bool_(False))
weighting.go4align(np.int64(2), risk_lr=np.float32(0.1))
weighting.scalarization(np.int64(3))
weighting.erm(jnp.ones(2))
MLP(np.int64(2), features=(np.int32(3),))
Decoder(np.int64(10), num_layers=np.int32(1), dtype="bfloat16", logits_chunk=np.int64(4))
data(num_classes=np.int64(2), task_names=["a", "b"])
run(batch_size=np.int64(4), seeds=[np.int64(0), np.uint32(1)], runs_together=np.int8(1))
run(seeds=range(2), methods=(Method("a", "average"), [Method("b", "erm")]), problem=sized())
run(batch_size=np.int64(4), microbatches=np.int32(2), interaction_rows=np.int64(2), **MESH)
run(problem=partial(lambda data_dir, n: tiny.Distances(), n=1))
own(sizes=np.array([1, 2]), on_device=OnDevice(POINTS, (np.int64(1), 1), take))
own(task_names=["a", np.str_("b")], metrics=[Metric(np.str_("distance"), np.bool_(False))])
arrays(**dict.fromkeys(("train", "validation", "test"), {1: (X, Y), 2: [X, Y]}))
arrays(train={"a": (pd.DataFrame(X), pd.Series(Y)), "b": (X.tolist(), Y)} | {"b": (X, Y)})
arrays(train={"a": (np.ma.array(X), Y), "b": (jnp.asarray(X), Y)})
arrays(loss=partial(mse), metrics={ERROR: partial(mse)})
arrays(metrics={ERROR: lambda outputs, rows: mean_squared_error(rows["targets"], outputs)})
arrays(metrics={ERROR: lambda outputs, rows: accuracy_score(rows["targets"] > 0, outputs > 0)})
arrays(metrics={ERROR: lambda outputs, rows: float(jnp.mean(outputs))})
arrays(metrics={ERROR: lambda outputs, rows: outputs[rows["targets"] > 0].mean()})
"""


def test_numbers_of_numpy_and_other_sequences_are_taken(names, tmp_path, survived):
    names["sized"] = lambda: own_problem(sizes=[1, 2])
    problems = []
    for expression in GOOD.strip().splitlines():
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        try:
            eval(expression, names)
            problem = None
        except TrainedError:
            problem = None
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        problems.append(problem and f"{expression}: {problem}")
    survived("good inputs", problems)


@pytest.mark.parametrize("kind", ["int64", "uint64", "float64"])
def test_64_bits_are_taken_as_they_are_where_jax_holds_them(kind, names):
    large = np.full((8, 2), 1e300 if kind == "float64" else 2**40, kind)
    pairs = {"a": (large, Y), "b": (large, Y)}
    given = dict.fromkeys(("train", "validation", "test"), pairs)
    with pytest.raises(ValueError, match="32 can hold.*64-bit mode"):
        names["arrays"](**given)
    small = {name: (np.zeros_like(large), Y) for name in pairs}
    with pytest.raises(TrainedError):
        names["arrays"](train=small, validation=small, test=small)
    with jax.enable_x64(True):
        model = (lambda key, x: jnp.ones(2), lambda params, x: x.astype(jnp.float64) @ params)
        with pytest.raises(TrainedError):
            names["arrays"](model=model, **given)


def test_what_goes_wrong_in_a_users_function_has_its_name_and_its_cause():
    said = r"^mine fails: KeyError: 'x'\.$"
    with pytest.raises(ValueError, match=said) as caught, errors.of("mine"):
        {}["x"]
    assert isinstance(caught.value.__cause__, KeyError)
    # An error of this library says all.
    with pytest.raises(ValueError, match="^size must be"), errors.of("mine"):
        tiny.batches(0)
