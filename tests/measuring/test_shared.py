"""The parameters that tasks share: found by tracing, and alone in A, in every form and strategy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import labelled, oracles, problems, tiny

from ldro_jax import interaction, ldro, transform
from ldro_jax.measuring import shared
from ldro_jax.problems.base import Metric
from ldro_jax.problems.tables import Table, TableProblem
from ldro_jax.runtime import equations
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Trial
from ldro_jax.training.method import Method
from ldro_jax.training.stacked import StackedEngine

N = 3
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(6, 4)).astype(np.float32)
PARAMS = {
    "trunk": {"kernel": RNG.normal(size=(4, 5)), "bias": RNG.normal(size=5)},
    "heads": {str(i): RNG.normal(size=5) for i in range(N)},
    "joint": RNG.normal(size=(5, N)),
    "pair": RNG.normal(size=5),
}
PARAMS = jax.tree.map(np.float32, PARAMS)


def trunk(p):
    return jax.nn.relu(INPUTS @ p["trunk"]["kernel"] + p["trunk"]["bias"][None])


def of_heads(p):
    """Losses of outputs that are stacked first."""
    z = trunk(p)
    return jnp.stack([z @ p["heads"][str(i)] for i in range(N)], axis=1)


LOSSES = {
    "of each": lambda p: jnp.stack([jnp.mean(y**2) for y in of_heads(p).T]),
    "stacked first": lambda p: jnp.mean(jax.nn.softplus(of_heads(p)), axis=0),
    "turned": lambda p: jnp.mean((of_heads(p).T.reshape(N, 1, -1) - 1) ** 2, axis=(1, 2)),
    "jitted": lambda p: jax.jit(lambda p: jnp.mean(jnp.abs(of_heads(p)), axis=0))(p),
    "padded": lambda p: jnp.sum(
        jnp.concatenate(
            [
                jnp.pad(of_heads(p)[:, :1], ((0, 0), (0, N - 1))),
                jnp.pad(of_heads(p)[:, 1:], ((0, 0), (1, 0))),
            ]
        ),
        axis=0,
    ),
}
COUNTED = {"heads": dict.fromkeys(map(str, range(N)), False), "joint": False, "pair": False}
COUNTED |= {"trunk": {"kernel": True, "bias": True}}


@pytest.mark.parametrize("losses", LOSSES)
def test_a_head_of_one_task_is_not_shared(losses):
    assert shared.found(LOSSES[losses], PARAMS) == COUNTED


def test_what_several_tasks_depend_on_is_shared():
    def losses(p):
        z = trunk(p)
        first = (z @ p["pair"]).sum()
        return jnp.stack([first, first + z.sum(), (z @ p["heads"]["2"]).sum()])

    assert shared.found(losses, PARAMS)["pair"]
    # An array of all outputs is one parameter.
    found = shared.found(lambda p: jnp.mean(trunk(p) @ p["joint"], axis=0), PARAMS)
    assert found["joint"] and found["trunk"]["bias"] and not found["pair"]


def test_where_nothing_is_shared_or_known_all_count(monkeypatch):
    heads = {str(i): PARAMS["heads"][str(i)] for i in range(N)}
    assert shared.found(lambda p: jnp.stack([p[str(i)].sum() for i in range(N)]), heads) is None
    # A sorted array mixes what was stacked.
    found = shared.found(lambda p: jnp.sort(of_heads(p).sum(axis=0)), PARAMS)
    assert all(found["heads"].values())

    def unknown(closed):
        raise equations.UnknownFormError("anything")

    monkeypatch.setattr(equations, "inlined", unknown)
    assert shared.found(LOSSES["of each"], PARAMS) is None


# In the form "forward" what the interaction is measured on is the user's own.
CASES = [(form, "vmap", 2, False) for form in problems.FORMS if form != "forward"]
CASES += [("tasks", name, 2, False) for name in ("auto", "split", "columns")]
CASES += [
    pytest.param("tasks", name, 2, False, marks=pytest.mark.heavy)
    for name in sorted({*interaction.STRATEGIES} - {"columns"})
]
CASES += [
    ("tasks", "vmap", 1, False),
    ("tasks", "layerwise", 1, True),
    ("tasks", "auto", 1, True),
    ("stacked", "vmap", 1, True),
]


@pytest.mark.parametrize("form, strategy, interval, lagged", CASES)
def test_the_interaction_is_that_of_the_trunk(form, strategy, interval, lagged):
    problem = problems.mlp()
    tx = ldro.transform(
        5,
        lookahead_lr=0.1,
        weight_lr=0.5,
        interaction=strategy,
        interaction_interval=interval,
        lagged=lagged,
        shared=lambda params: {name: name != "heads" for name in params},
    )
    (_, state), *_ = problems.train(optax.chain(tx, optax.sgd(0.1)), problem, 1, form)
    trunk = {name: x for name, x in problem.params.items() if name != "heads"}
    alone = problem._replace(
        params=trunk, loss_fn=lambda part, task: problem.loss_fn(problem.params | part, task)
    )
    found, expected = transform.find_state(state).interaction, oracles.gram(*alone)
    if strategy == "split":
        # The diagonal is another on purpose.
        found, expected = (np.array(x) * (1 - np.eye(5)) for x in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_loop_of_ones_own_finds_the_trunk():
    tx = ldro.transform(N, lookahead_lr=0.1, weight_lr=0.5, interaction_interval=1)
    losses = LOSSES["of each"]
    _, state = tx.update(None, tx.init(PARAMS), PARAMS, losses_fn=losses)

    def of_trunk(part):
        return losses(PARAMS | {"trunk": part})

    expected = interaction.jacobian_gram(of_trunk, PARAMS["trunk"])
    np.testing.assert_allclose(transform.find_state(state).interaction, expected, rtol=1e-5)
    given, _ = ldro.statistics(lambda p: (losses(p), ()), PARAMS, has_aux=True)
    np.testing.assert_allclose(given["interaction_fn"](), expected, rtol=1e-5)


def init(key, inputs):
    return jax.tree.map(jnp.asarray, PARAMS)


def apply(params, inputs, *name):
    z = jnp.tanh(inputs @ params["trunk"]["kernel"] + params["trunk"]["bias"][None])
    return {str(i): z @ params["heads"][str(i)] for i in range(N)}


def squared(outputs, rows):
    return (outputs - rows["targets"]) ** 2


def problem(tables):
    def table(tasks):
        targets = {task: INPUTS[:, int(task)] for task in tasks}
        return Table(INPUTS, targets)

    split = {"a": table("01"), "b": table("2")} if tables else table("012")
    splits = dict.fromkeys(("train", "validation", "test"), split)
    model = (init, lambda p, x, *name: _own(apply(p, x), *name))
    return TableProblem(splits, model, squared, {Metric("error", False): squared})


def _own(outputs, name=None):
    return outputs if name is None else {i: outputs[i] for i in {"a": "01", "b": "2"}[name]}


@pytest.mark.parametrize("tables", [False, True])
def test_the_trainer_counts_the_trunk(tables):
    method = Method("L-DRO", "lookahead_online", {"lookahead_lr": 0.5, "weight_lr": 0.5})
    engine = StackedEngine(problem(tables), optax.sgd(0.0), Batches(6))
    session = engine.program(method).start([Trial(method, 0)])
    session.advance(1, lambda step: False, tiny.Progress())
    found = transform.find_state(session.state(0).opt_state).interaction

    def loss(part, task):
        outputs = apply(PARAMS | {"trunk": part}, INPUTS)[str(task)]
        return jnp.mean((outputs - INPUTS[:, task]) ** 2)

    if tables:
        # Three of the six rows of each table, as they are drawn.
        assert engine.shared == COUNTED
        return
    each = [jax.grad(functools.partial(loss, task=i))(PARAMS["trunk"]) for i in range(N)]
    flat = np.stack([jax.flatten_util.ravel_pytree(g)[0] for g in each])
    np.testing.assert_allclose(found, flat @ flat.T, rtol=1e-4)


def test_statistics_and_joint_heads_of_a_flax_model():
    found = StackedEngine(labelled.problem(), optax.sgd(0.1), Batches(8)).shared
    assert found is None or all(jax.tree.leaves(found["params"]))


@pytest.mark.parametrize(
    "given, said",
    [
        (lambda p: {"a": True}, "shared must be a tree of bools"),
        (False, "shared marks no parameter"),
        (lambda p: jax.tree.map(lambda _: 1.0, p), "shared must be a tree of bools"),
    ],
)
def test_marks_that_do_not_fit_are_refused(given, said):
    tx = ldro.transform(N, lookahead_lr=0.1, weight_lr=0.5, shared=given)
    with pytest.raises(ValueError, match=said):
        tx.update(None, tx.init(PARAMS), PARAMS, losses_fn=LOSSES["of each"])


def test_all_parameters_count_where_a_task_shares_none():
    # Else its gradient would be zero, as that of a task that has converged.
    def losses(params):
        trunk = jnp.sum(params["trunk"])
        return jnp.stack([trunk * params["a"], trunk + params["b"], params["own"] ** 2])

    params = {"trunk": jnp.ones(2), "a": jnp.ones([]), "b": jnp.ones([]), "own": jnp.ones([])}
    assert shared.found(losses, params) is None
    two = shared.found(lambda p: losses(p)[:2], params)
    assert two == {"trunk": True, "a": False, "b": False, "own": False}
