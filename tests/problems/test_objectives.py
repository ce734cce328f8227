"""What groups are trained on: linear programmes, the papers' formulas in NumPy, and whole runs."""

import dataclasses
import functools

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers import calls, labelled, plain_loop, tiny
from scipy import optimize, special

from ldro_jax import configuration, problems
from ldro_jax.experiments import compare
from ldro_jax.models.autoencoder import MLPAutoencoder
from ldro_jax.problems import CVaR, Perturbed, Reconstruction
from ldro_jax.sharding import Layout
from ldro_jax.tasks import drawing, grouped
from ldro_jax.tasks.grouped import GroupedSplit
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Trial
from ldro_jax.training.meshed import MeshedEngine
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule
from ldro_jax.training.stacked import StackedEngine

ROWS, SEED, RATE = 24, 3, 0.5
DTYPES = ("float32", "float64")


def data(make, rows=ROWS):
    """Groups of two classes and two attributes, with inputs [E, ...] that a generator makes."""
    rng = np.random.default_rng(0)
    classes = np.arange(rows, dtype=np.int32) % 2
    attributes = np.arange(rows, dtype=np.int32) // 2 % 2
    splits = [GroupedSplit(make(rng, rows), classes, attributes) for _ in range(3)]
    return grouped.GroupedData(*splits, ("cow", "camel"), ("grass", "sand"))


def numbers(dtype="float32", shape=(3,)):
    return data(lambda rng, rows: rng.normal(size=(rows, *shape)).astype(dtype))


def tokens():
    """Seven tokens and a mask token, 7; the token 0 fills rows up."""

    def make(rng, rows):
        length = rng.integers(2, 7, size=(rows, 1))
        found = rng.integers(1, 7, size=(rows, 6))
        return np.where(np.arange(6) < length, found, 0).astype(np.int32)

    return data(make)


class Linear:
    """A linear classifier, which keeps what it is called with."""

    def __init__(self):
        self.called = []

    def functions(self):
        def init(key, inputs):
            return jax.random.normal(key, (inputs.shape[1], 2), inputs.dtype)

        def apply(params, inputs):
            self.called.append(inputs)
            return inputs @ params

        return init, apply


def by_hand(inputs, classes, params):
    """Cross-entropy of each row, [R], and its gradient, [R, D, C]."""
    logits = np.asarray(inputs, np.float64) @ np.asarray(params, np.float64)
    errors = special.softmax(logits, axis=1) - np.eye(2)[classes]
    losses = special.logsumexp(logits, axis=1) - logits[np.arange(len(classes)), classes]
    return losses, inputs[:, :, None] * errors[:, None, :]


def worst(losses, share):
    """The weights of the CVaR, by a linear programme."""
    limit, size = 1 / (share * len(losses)), len(losses)
    found = optimize.linprog(
        -losses, A_eq=np.ones((1, size)), b_eq=[1], bounds=[(0, limit)] * size, method="highs"
    )
    assert found.success
    return found.x


def all_rows(problem):
    arrays, tasks = problem.on_device.arrays, jnp.zeros(ROWS, jnp.int32)
    return problem.on_device.take(
        arrays, jax.random.key(0), 0, tasks, jnp.arange(ROWS, dtype=jnp.int32)
    )


def mean(problem, params, rows, *key):
    return jnp.mean(problem.training_losses(params, rows, *key).sums)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_the_worst_share_is_that_of_a_linear_programme(share, dtype):
    with jax.enable_x64(dtype == "float64"):
        problem = problems.groups(
            numbers(dtype), Linear().functions(), known="nothing", objective=CVaR(share)
        )
        rows, params = all_rows(problem), problem.init(jax.random.key(1))
        losses, gradients = by_hand(np.asarray(rows["inputs"]), np.asarray(rows["targets"]), params)
        weights = worst(losses, share)
        found, gradient = jax.jit(jax.value_and_grad(functools.partial(mean, problem, rows=rows)))(
            params
        )
        sums = problem.training_losses(params, rows).sums
        assert sums.dtype == found.dtype == dtype
        tolerance = {"rtol": 1e-5 if dtype == "float32" else 1e-12}
        np.testing.assert_allclose(found, weights @ losses, **tolerance)
        np.testing.assert_allclose(
            np.asarray(sums) / ROWS, weights * losses, atol=1e-7, **tolerance
        )
        expected = np.tensordot(weights, gradients, 1)
        np.testing.assert_allclose(gradient, expected, atol=1e-7, **tolerance)


def test_the_worst_of_all_rows_are_those_of_erm():
    plain = problems.groups(numbers(), Linear().functions(), known="nothing")
    problem = problems.groups(numbers(), Linear().functions(), known="nothing", objective=CVaR(1.0))
    rows, params = all_rows(problem), problem.init(jax.random.key(1))
    found, expected = (p.training_losses(params, rows).sums for p in (problem, plain))
    np.testing.assert_array_equal(found, expected)


def test_rows_that_are_tied_share_alike():
    problem = problems.groups(
        numbers(), Linear().functions(), known="nothing", objective=CVaR(0.75)
    )
    rows, params = all_rows(problem), jnp.zeros((3, 2))
    np.testing.assert_allclose(problem.training_losses(params, rows).sums, np.log(2), rtol=1e-6)


def test_a_loss_that_is_no_number_stays_one():
    problem = problems.groups(numbers(), Linear().functions(), known="nothing", objective=CVaR(0.2))
    rows, params = all_rows(problem), problem.init(jax.random.key(1))
    rows["inputs"] = jnp.asarray(rows["inputs"]).at[5].set(jnp.nan)
    assert not np.isfinite(mean(problem, params, rows))


def test_rows_of_a_batch_are_taken_together_whatever_the_method_measures():
    """Also where the interaction is measured between halves of a batch."""
    method = dataclasses.replace(LDRO, interaction="split", interaction_interval=1)
    problem = problems.groups(numbers(), Linear().functions(), known="nothing", objective=CVaR(0.4))
    program = StackedEngine(problem, optax.sgd(RATE), Batches(6)).program(method)
    session = program.start([Trial(method, SEED)])
    params, rows = np.array(session.state(0).params), drawn(problem, 6)
    losses, gradients = by_hand(np.asarray(rows["inputs"]), np.asarray(rows["targets"]), params)
    session.advance(1, lambda step: False, tiny.Progress())
    weights = worst(losses, 0.4)
    np.testing.assert_allclose(session.evaluated()[0], [weights @ losses], rtol=1e-5)
    moved = params - RATE * np.tensordot(weights, gradients, 1)
    np.testing.assert_allclose(session.state(0).params, moved, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
def test_perturbed_losses_are_those_of_the_worst_draws(share, dtype):
    draws, radius, key = 6, 0.5, jax.random.key(7)
    with jax.enable_x64(dtype == "float64"):
        model = Linear()
        problem = problems.groups(
            numbers(dtype), model.functions(), objective=Perturbed(share, radius, draws)
        )
        rows, params = all_rows(problem), problem.init(jax.random.key(1))
        model.called.clear()
        sums = problem.training_losses(params, rows, key).sums
        (given,) = map(np.asarray, model.called)
        noise = (given - np.repeat(np.asarray(rows["inputs"]), draws, axis=0)) / radius
        assert len(given) == ROWS * draws and np.abs(noise).max() <= 1 + 1e-5
        # Uniform on [-1, 1]: of n draws the mean has a deviation of 1 / √(3n), that of the absolute
        # value half as much.
        assert abs(noise.mean()) < 4 / np.sqrt(3 * noise.size)
        assert abs(np.abs(noise).mean() - 0.5) < 2 / np.sqrt(3 * noise.size)
        classes = np.repeat(np.asarray(rows["targets"]), draws)
        losses, gradients = by_hand(given, classes, params)
        weights = np.stack([worst(mine, share) for mine in losses.reshape(ROWS, draws)])
        tolerance = {"rtol": 1e-5 if dtype == "float32" else 1e-12, "atol": 1e-7}
        expected = (weights * losses.reshape(ROWS, draws)).sum(axis=1)
        np.testing.assert_allclose(sums, expected, **tolerance)
        gradient = jax.jit(jax.grad(functools.partial(mean, problem)))(params, rows, key)
        each = np.tensordot(weights.reshape(-1), gradients, 1) / ROWS
        np.testing.assert_allclose(gradient, each, **tolerance)
        other = problem.training_losses(params, rows, jax.random.key(8)).sums
        assert not np.allclose(sums, other)


def test_images_are_masked_in_squares_and_as_many_in_each_row():
    masked = Reconstruction(0.3, patch=2).masks(jnp.zeros((50, 6, 4, 3)), jax.random.key(0))
    masked = np.asarray(masked)
    squares = masked[:, ::2, ::2, 0]
    np.testing.assert_array_equal(
        masked, np.repeat(np.kron(squares, np.ones((1, 2, 2), bool))[..., None], 3, axis=3)
    )
    # 0.3 × 6 squares, to the nearest.
    assert (squares.sum(axis=(1, 2)) == 2).all()
    # Each of six with a chance of a third, in 50 rows.
    counts = squares.sum(axis=0)
    assert (np.abs(counts - 50 / 3) < 4 * np.sqrt(50 * 2 / 9)).all()
    for shape in ((3, 8), (3, 2, 4)):
        few = Reconstruction(0.01).masks(jnp.zeros(shape), jax.random.key(0))
        assert few.shape == shape and (np.asarray(few).reshape(3, -1).sum(axis=1) == 1).all()


def test_padding_is_never_masked():
    inputs = jnp.array([[3, 1, 2, 5, 0, 0], [4, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6], [0] * 6])
    inputs = inputs.astype(jnp.int32)
    masked = Reconstruction(0.5, token=7, padding=0).masks(inputs, jax.random.key(0))
    assert not (masked & (inputs == 0)).any()
    assert masked.sum(axis=1).tolist() == [2, 1, 3, 0]


class TokenModel(nn.Module):
    """An embedding of eight tokens, the mean over places for classes, each place for its token."""

    @nn.compact
    def __call__(self, inputs):
        hidden = nn.relu(nn.Dense(5)(nn.Embed(8, 4)(inputs)))
        logits = nn.Dense(2)(hidden.mean(axis=1))
        return {"logits": logits, "features": hidden, "reconstruction": nn.Dense(7)(hidden)}


def papers(model, params, parts, objective, exponents):
    """e^a CE + e^b L_aux + e^c (‖H‖₁/numel(H) + ‖H'‖₁/numel(H')); parts are (rows, mask)."""
    classes, errors, masked, features = [], [], [], ([], [])
    for rows, mask in parts:
        inputs = rows["inputs"]
        hidden = jnp.where(mask, jnp.asarray(objective.token or 0, inputs.dtype), inputs)
        clean, other = (model.apply({"params": params}, x) for x in (inputs, hidden))
        classes.append(
            -jnp.sum(nn.log_softmax(clean["logits"]) * jax.nn.one_hot(rows["targets"], 2), 1)
        )
        if objective.token is None:
            difference = jnp.abs(other["reconstruction"] - inputs)
            error = difference if objective.error == "absolute" else difference**2
        else:
            known = jax.nn.one_hot(inputs, other["reconstruction"].shape[-1])
            error = -jnp.sum(nn.log_softmax(other["reconstruction"]) * known, axis=-1)
        errors.append(jnp.sum(jnp.where(mask, error, 0)))
        masked.append(jnp.sum(mask, dtype=jnp.float32))
        for found, one in zip(features, (clean, other), strict=True):
            found.append(one["features"])
    penalty = sum(jnp.sum(jnp.abs(jnp.concatenate(h))) / jnp.concatenate(h).size for h in features)
    losses = jnp.stack([jnp.mean(jnp.concatenate(classes)), sum(errors) / sum(masked), penalty])
    return jnp.exp(jnp.array(exponents)) @ losses, losses


KINDS = {
    "numbers": (numbers(), MLPAutoencoder(2, (4,)), Reconstruction(0.4)),
    "images": (
        numbers(shape=(4, 4)),
        MLPAutoencoder(2, (4,)),
        Reconstruction(0.4, patch=2, error="squared"),
    ),
    "tokens": (tokens(), TokenModel(), Reconstruction(0.4, token=7, padding=0)),
}


def drawn(problem, size):
    """The rows of the first step."""
    sizes = np.array([ROWS])
    drawer = drawing.Drawer("balanced", size, 0 * sizes, sizes=sizes)
    found = plain_loop.drawn(drawer, jax.random.fold_in(jax.random.key(SEED), 1), 1)
    take = problem.on_device.take
    return take(problem.on_device.arrays, None, 0, found.tasks[0], found.indices[0])


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_fixed_weights_take_the_papers_step(kind, microbatches):
    (given, model, objective), size, exponents = KINDS[kind], 8, (0.0, -1.0, -0.5)
    problem = problems.groups(given, model, known="nothing", objective=objective)
    weights = tuple(np.exp(exponents).tolist())
    method = Method("Regularised MTL", "erm", {"sizes": weights}, total=sum(weights))
    batches = Batches(size, microbatches=microbatches)
    program = StackedEngine(problem, optax.sgd(RATE), batches).program(method)
    session = program.start([Trial(method, SEED)])
    params, rows = jax.tree.map(np.array, session.state(0).params), drawn(problem, size)
    key = jax.random.fold_in(labelled.run_key(SEED), 0)
    keys = [key] if microbatches == 1 else jax.random.split(key, microbatches)
    parts = []
    for part, own in enumerate(keys):
        mine = jax.tree.map(lambda x, part=part: x[part::microbatches], rows)
        parts.append((mine, objective.masks(mine["inputs"], jax.random.split(own)[1])))
    function = functools.partial(papers, model, objective=objective, exponents=exponents)
    gradient, losses = jax.jit(jax.grad(lambda params: function(params, parts), has_aux=True))(
        params
    )
    session.advance(1, lambda step: False, tiny.Progress())
    np.testing.assert_allclose(session.evaluated()[0], losses, rtol=1e-5)
    jax.tree.map(
        lambda new, old, g: np.testing.assert_allclose(new, old - RATE * g, rtol=1e-4, atol=1e-6),
        session.state(0).params,
        params,
        gradient,
    )


class Network(nn.Module):
    """Batch normalisation and dropout, with a reconstruction if it is asked for."""

    decodes: bool = False

    @nn.compact
    def __call__(self, inputs, train):
        hidden = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(inputs))
        hidden = nn.Dropout(0.2, deterministic=not train)(nn.relu(hidden))
        logits = nn.Dense(2)(hidden)
        if not self.decodes:
            return logits
        found = nn.Dense(inputs.shape[1])(hidden)
        return {"logits": logits, "features": hidden, "reconstruction": found}


GROUP_DRO = Method("Group DRO", "group_dro", {"weight_lr": 0.1})
LDRO = Method("L-DRO", "lookahead_online", {"lookahead_lr": 0.1, "weight_lr": 0.1})


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize(
    "objective, known, methods, tasks",
    [
        (CVaR(0.5), "nothing", [tiny.AVERAGE], ["all examples"]),
        (Perturbed(0.5, 0.1, 3), "groups", [GROUP_DRO], None),
        (Reconstruction(0.4), "nothing", [LDRO], ["classes", "reconstruction", "sparsity"]),
    ],
    ids=["CVaR", "perturbed", "reconstruction"],
)
def test_runs_end_with_a_report_of_the_groups(objective, known, methods, tasks, tmp_path):
    model = Network(decodes=isinstance(objective, Reconstruction))
    problem = problems.groups(numbers(), model, known=known, objective=objective)
    given = numbers()
    options = {
        "problem": problem,
        "methods": methods,
        "seeds": (0,),
        "optimizer": optax.sgd(0.1),
        "schedule": Schedule(4, 2, 2),
        "batch_size": 8,
    }
    record = compare.compare(**calls.parts(tmp_path, **options))
    (run,) = record.runs
    assert record.task_names == list(given.group_names)
    assert record.tasks == (tasks or list(given.group_names))
    assert np.isfinite(run.losses.values).all() and run.losses.values.shape == (
        2,
        len(record.tasks),
    )
    assert list(run.evaluations[-1].per_task) == list(given.group_names)
    assert run.evaluations[-1].split == "test" and (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "objective, known", [(CVaR(0.5), "nothing"), (Perturbed(0.5, 0.0, 2), "groups")]
)
def test_statistics_move_once_a_step(objective, known):
    problem = problems.groups(numbers(), Network(), known=known, objective=objective)
    params, rows = jax.jit(problem.init)(jax.random.key(0)), all_rows(problem)
    assert problem.draws_at_random
    taken = jax.jit(lambda *given: problem.training_losses(*given).auxiliary)
    new = taken(params, rows, jax.random.key(1))
    expected = rows["inputs"] @ np.asarray(params["params"]["Dense_0"]["kernel"])
    found = new["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(found, 0.01 * expected.mean(axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("objective", [CVaR(0.5), Perturbed(0.5, 0.1, 3), Reconstruction(0.4)])
def test_training_is_the_same_on_one_and_on_eight_devices(objective):
    problem = problems.groups(
        numbers(),
        MLPAutoencoder(2, (4,)) if isinstance(objective, Reconstruction) else Linear().functions(),
        known="nothing",
        objective=objective,
    )
    found = []
    for devices in (1, 8):
        batches = Batches(16, microbatches=2, layout=Layout(data=devices))
        session = MeshedEngine(problem, optax.sgd(RATE), batches).program(LDRO)
        session = session.start([Trial(LDRO, SEED)])
        session.advance(3, lambda step: False, tiny.Progress())
        found.append((session.evaluated()[0], jax.tree.leaves(session.state(0).params)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), *found)


def test_gin_files_can_name_them():
    configuration._register()
    for objective in (CVaR(0.1), Perturbed(0.1, 0.2), Reconstruction(0.3)):
        made = gin.get_configurable(f"problems.{type(objective).__name__}")
        assert made(**dataclasses.asdict(objective)) == objective


def groups(objective, given=None, model=None, known="nothing"):
    return problems.groups(
        given or numbers(), model or Linear().functions(), known=known, objective=objective
    )


def gives(outputs):
    """A model that makes what a function says of its inputs."""
    return lambda key, inputs: jnp.zeros(3), lambda params, inputs: outputs(inputs)


def all_three(inputs, **changed):
    found = {"logits": jnp.zeros((len(inputs), 2)), "features": inputs, "reconstruction": inputs}
    return {**found, **changed}


MASKED = Reconstruction(0.3, token=7)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda: CVaR(0), r"share must be a number in \(0, 1\], but it is 0"),
        (lambda: Perturbed(1.5, 0.1), "share must be"),
        (lambda: Perturbed(0.5, -0.1), "radius must be"),
        (lambda: Perturbed(0.5, 0.1, 0), "draws must be a positive integer"),
        (lambda: Reconstruction(0.0), "share must be"),
        (lambda: Reconstruction(token=-1), "token must be"),
        (lambda: Reconstruction(padding="x"), "padding must be"),
        (lambda: Reconstruction(token=0, padding=0), "token must be another one than the padding"),
        (lambda: Reconstruction(patch=0), "patch must be"),
        (lambda: Reconstruction(error="L1"), "error must be one of 'absolute', 'squared'"),
        (lambda: groups("CVaR"), r"objective must be an Objective, such as problems.CVaR\("),
        (lambda: groups(CVaR(0.1), known="groups"), "known must be 'nothing' with objective=CVaR"),
        (lambda: groups(MASKED, known="classes"), "known must be .*Reconstruction.*'classes'"),
        (
            lambda: groups(Perturbed(0.1, 0.1), tokens(), TokenModel()),
            "another one than Perturbed .* takes int32",
        ),
        (lambda: groups(Reconstruction(), tokens(), TokenModel()), "takes int32.*Name the mask"),
        (lambda: groups(Reconstruction(padding=0)), "floating-point numbers, without padding"),
        (lambda: groups(MASKED), r"needs tokens, integers \[R, L\]"),
        (lambda: groups(Reconstruction(patch=2)), "a patch that divides H and W"),
        (
            lambda: groups(Reconstruction(patch=3), numbers(shape=(6, 4)), MLPAutoencoder(2)),
            r"divides H and W, but inputs are \['R', 6, 4\], and the patch is 3",
        ),
        (lambda: groups(Reconstruction()), "model must give a dictionary"),
        (
            lambda: groups(Reconstruction(), model=gives(lambda x: all_three(x, features=x[:1]))),
            r"logits \[R, C\], features \[R, ...\] and reconstruction \[R, 3\]",
        ),
        (
            lambda: groups(
                Reconstruction(), model=gives(lambda x: all_three(x, reconstruction=x[:, :1]))
            ),
            r"'reconstruction': \(2, 1\)",
        ),
        (
            lambda: groups(
                MASKED,
                tokens(),
                gives(lambda x: all_three(x, reconstruction=jnp.zeros((*x.shape, 6)))),
            ),
            "V is 6, and tokens are from 0 to 6",
        ),
        (
            lambda: groups(Reconstruction(), model=MLPAutoencoder(3)),
            r"must give 2 logits for each input, but it gives \(3,\)",
        ),
        (lambda: groups(None, model=MLPAutoencoder(2)), "must give 2 logits .*'reconstruction'"),
        (
            lambda: groups(Reconstruction(), model=MLPAutoencoder(2)).with_reference({}),
            "with objective=Reconstruction it is of 3",
        ),
    ],
)
def test_bad_input_is_one_line(wrong, said):
    with pytest.raises(ValueError, match=said) as error:
        wrong()
    assert "\n" not in str(error.value)
