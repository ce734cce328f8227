"""A weighting inside trainers that hand over a gradient and nothing else: the same steps."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from ldro_jax import ldro, transform, weighting

TASKS = 3
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
WEIGHTINGS = {
    "default": {},
    "L-DRO": {"lookahead_lr": 0.1, "weight_lr": 0.5, "interaction_interval": 2},
    "smooth": {"lookahead_lr": 0.1, "temperature": 0.3},
}


def batch_of(key):
    x = jax.random.normal(jax.random.key(key), (12, 2))
    task = jnp.arange(12) % TASKS
    return {"x": x, "y": jnp.tanh(x[:, 0]) * (1 + task).astype("float32"), "task": task}


def task_losses(params, batch):
    outputs = jnp.tanh(batch["x"] @ params["in"]) @ params["out"]
    return ldro.Rows((outputs - batch["y"]) ** 2 + 0.1, batch["task"])


def params_of(key=0):
    first, last = jax.random.split(jax.random.key(key))
    return {"in": jax.random.normal(first, (2, 4)), "out": jax.random.normal(last, (4,))}


def same(found, expected):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **CLOSE), found, expected)


def trainer(loss, optimizer, wrap=lambda loss: loss):
    """A step as trainers write it."""

    def step(params, state, batch):
        value, gradient = jax.value_and_grad(wrap(loss))(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


@pytest.mark.parametrize("compiled, gradient", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("kind", WEIGHTINGS)
def test_steps_are_those_that_are_told_of_the_tasks(kind, compiled, gradient):
    tap = ldro.tap(task_losses, TASKS, gradient=gradient)
    make = functools.partial(ldro.transform, TASKS, **WEIGHTINGS[kind])
    tapped = optax.chain(tap(make()), optax.sgd(0.1, momentum=0.9))
    told = optax.chain(make(), optax.sgd(0.1, momentum=0.9))

    def by_hand(params, state, batch):
        updates, state = told.update(None, state, params, losses_fn=lambda p: task_losses(p, batch))
        return optax.apply_updates(params, updates), state, None

    ends = []
    for step, optimizer in ((trainer(tap.loss, tapped), tapped), (by_hand, told)):
        step = jax.jit(step) if compiled else step
        params, state = params_of(), optimizer.init(params_of())
        for number in range(4):
            # A trainer evaluates, compiled or not, with the same function.
            jax.jit(tap.loss)(params, batch_of(9))
            tap.loss(params, batch_of(9))
            params, state, value = step(params, state, batch_of(number))
            if value is not None:
                mean = ldro.losses(state).mean()
                np.testing.assert_allclose(value, mean, rtol=1e-5)
        ends.append((params, state))
    same(*ends)


def test_what_else_the_loss_gives_goes_to_the_trainer():
    def with_aux(params, batch, *, scale):
        return task_losses(params, batch), {"scaled": scale * batch["x"].sum()}

    tap = ldro.tap(with_aux, TASKS, has_aux=True)
    tx = optax.chain(tap(ldro.transform(TASKS)), optax.sgd(0.1))

    @jax.jit
    def step(params, state, batch):
        loss = functools.partial(tap.loss, scale=2.0)
        (_, aux), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)
        return tx.update(gradient, state, params), aux

    batch = batch_of(0)
    (updates, _), aux = step(params_of(), tx.init(params_of()), batch)
    np.testing.assert_allclose(aux["scaled"], 2 * batch["x"].sum(), rtol=1e-6)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(updates))


def normed_losses(params, batch):
    """What compilers don't see to be the same in two passes."""
    hidden = batch["x"] @ params["in"]
    hidden *= jax.lax.rsqrt(jnp.square(hidden).mean(axis=1, keepdims=True) + 0.1)
    return ldro.Rows((hidden @ params["out"] - batch["y"]) ** 2, batch["task"]), hidden


def test_a_step_has_one_forward_pass():
    tap = ldro.tap(normed_losses, TASKS, has_aux=True)
    given = params_of(), ldro.transform(TASKS).init(params_of()), batch_of(0)

    def trainers(params, state, batch):
        (value, aux), gradient = jax.value_and_grad(tap.loss, has_aux=True)(params, batch)
        return tap(ldro.transform(TASKS)).update(gradient, state, params), value, aux

    def by_hand(params, state, batch):
        losses_fn = lambda params: normed_losses(params, batch)[0]  # noqa: E731
        return ldro.transform(TASKS).update(None, state, params, losses_fn=losses_fn)

    programs = [jax.jit(step).lower(*given).compile() for step in (trainers, by_hand)]
    flops = [program.cost_analysis()["flops"] for program in programs]
    # The trainer's mean is a few additions.
    assert flops[1] <= flops[0] < flops[1] + 200
    np.testing.assert_allclose(programs[0](*given)[2], normed_losses(*given[::2])[1], rtol=1e-6)


def test_a_trainer_that_gets_no_gradient_computes_none():
    """Though it logs its length, which otherwise costs a backward pass."""
    flops, norms = {}, {}
    for gradient in (True, False):
        tap = ldro.tap(task_losses, TASKS, gradient=gradient)
        tx = optax.chain(tap(ldro.transform(TASKS, **WEIGHTINGS["L-DRO"])), optax.sgd(0.1))

        def step(params, state, batch, loss=tap.loss, tx=tx):
            found = jax.grad(loss)(params, batch)
            return tx.update(found, state, params), optax.tree.norm(found)

        given = params_of(), tx.init(params_of()), batch_of(0)
        program = jax.jit(step).lower(*given).compile()
        flops[gradient], norms[gradient] = program.cost_analysis()["flops"], program(*given)[1]
    assert norms[True] > 0 == norms[False]
    assert flops[False] < flops[True]


class Network(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(2, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, inputs):
        return self.last(self.dropout(self.norm(self.first(inputs))))[:, 0]


def of_module(model, batch):
    return ldro.Rows((model(batch["x"]) - batch["y"]) ** 2 + 0.1, batch["task"])


def of_loras(model, batch):
    """The same of a model whose trained parameters are those of LoRA."""
    return of_module(model, batch)


class Adapted(Network):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.first = nnx.LoRA(2, 2, 4, base_module=self.first, rngs=rngs)


@pytest.mark.parametrize(
    ("kind", "wrt"), [(Network, nnx.Param), (Adapted, nnx.LoRAParam)], ids=["whole", "LoRA"]
)
def test_a_module_keeps_its_statistics_and_counts(kind, wrt):
    """Running statistics and dropout move on once a step, and every pass sees the same mask."""
    make = functools.partial(ldro.transform, TASKS, lookahead_lr=0.1, weight_lr=0.5)
    tap = ldro.tap(of_module, TASKS)

    def fresh(tx):
        model = kind(nnx.Rngs(0))
        model.train()
        return model, nnx.Optimizer(model, tx, wrt=wrt)

    @nnx.jit
    def tapped(model, optimizer, batch):
        diff = nnx.DiffState(0, wrt)
        # By name, as Tunix does.
        _, gradient = nnx.value_and_grad(tap.loss, argnums=diff)(model, batch=batch)
        optimizer.update(model, gradient)

    @nnx.jit
    def by_hand(model, optimizer, batch):
        graph, params, rest = nnx.split(model, wrt, ...)

        def losses_fn(params):
            copied = nnx.merge(graph, params, jax.tree.map(jnp.copy, rest))
            return of_module(copied, batch), nnx.state(copied, nnx.Not(wrt))

        _, after = losses_fn(params)
        optimizer.update(model, None, losses_fn=lambda p: losses_fn(p)[0])
        nnx.update(model, after)

    ends = []
    for step, tx in ((tapped, tap(make())), (by_hand, make())):
        model, optimizer = fresh(optax.chain(tx, optax.sgd(0.1)))
        begin = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, wrt)))
        for number in range(3):
            step(model, optimizer, batch_of(number))
        state = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState)))
        counts = nnx.to_pure_dict(nnx.state(model, nnx.RngCount))
        ends.append((state, counts, nnx.to_pure_dict(nnx.state(optimizer))))
        moved = jax.tree.map(
            lambda x, y: np.abs(x - y).max(), begin, nnx.to_pure_dict(nnx.state(model, wrt))
        )
        assert min(jax.tree.leaves(moved)) > 0
    same(*ends)
    assert max(jax.tree.leaves(ends[0][1])) >= 3


class Remembering(nnx.Module):
    """Has the largest input of the last two steps, and drops inputs from a stream of its caller."""

    def __init__(self):
        self.layer = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        self.now, self.before = nnx.BatchStat(jnp.zeros(())), nnx.BatchStat(jnp.zeros(()))

    def __call__(self, inputs, rngs):
        self.before[...] = self.now[...]
        self.now[...] = inputs.max()
        kept = jax.random.bernoulli(rngs.dropout(), 0.5, inputs.shape)
        return self.layer(jnp.where(kept, inputs, 0))[:, 0]


def test_streams_among_the_arguments_move_on_and_variables_may_take_values_of_others():
    if isinstance(jax.tree.leaves(nnx.Rngs(0))[0], nnx.Rngs):
        pytest.skip("before Flax 0.12 they aren't trees")

    def losses_fn(model, batch, rngs):
        return ldro.Rows((model(batch["x"], rngs) - batch["y"]) ** 2, batch["task"])

    tap = ldro.tap(losses_fn, TASKS)
    tx = optax.chain(tap(transform.weighted(weighting.average(), TASKS)), optax.sgd(0.1))

    def plain(model, batch, rngs):
        return losses_fn(model, batch, rngs).means(TASKS)[0].mean()

    ends = []
    for loss, optimizer in ((tap.loss, tx), (plain, optax.sgd(0.1))):

        @nnx.jit
        def step(model, optimizer, batch, rngs, loss=loss):
            optimizer.update(model, nnx.grad(loss)(model, batch, rngs))

        model, rngs = Remembering(), nnx.Rngs(dropout=1)
        optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
        for number in range(3):
            step(model, optimizer, batch_of(number), rngs)
        ends.append([nnx.to_pure_dict(nnx.state(model)), int(rngs.dropout.count[...])])
    same(*ends)
    assert ends[0][1] == 3


def whole(params, batch):
    """The mean losses of rows that are on several devices."""
    means, counts = task_losses(params, batch).means(TASKS)
    counts = counts.astype(means.dtype)
    return jax.lax.psum(means * counts, "data") / jax.lax.psum(counts, "data")


OTHER_PLACES = ["shared by a vmap", "outside of a scan", "looked at before", "summed over devices"]


@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="programs didn't know those around them")
@pytest.mark.parametrize("place", OTHER_PLACES)
def test_the_batch_may_be_of_a_program_around_the_step(place):
    of_devices = place == "summed over devices"
    tap = ldro.tap(whole if of_devices else task_losses, TASKS)
    make = functools.partial(ldro.transform, TASKS, lookahead_lr=0.1, weight_lr=0.5)
    tx, told = optax.chain(tap(make()), optax.sgd(0.1)), optax.chain(make(), optax.sgd(0.1))
    step, batch = trainer(tap.loss, tx), batch_of(0)
    given = params_of(), tx.init(params_of())

    def scanned(params, state, batch):
        def again(carry, _):
            return step(*carry, batch)[:2], None

        return jax.lax.scan(again, (params, state), None, length=2)[0]

    def by_hand(params, state):
        losses_fn = functools.partial(task_losses, batch=batch)
        updates, state = told.update(None, state, params, losses_fn=losses_fn)
        return optax.apply_updates(params, updates), state

    expected = jax.jit(by_hand)(*given)
    if place == "shared by a vmap":
        stacked = jax.tree.map(lambda x: jnp.stack([x, x]), given)
        found = jax.jit(jax.vmap(step, in_axes=(0, 0, None)))(*stacked, batch)[:2]
        found = jax.tree.map(lambda x: x[1], found)
    elif place == "outside of a scan":
        found, expected = jax.jit(scanned)(*given, batch), jax.jit(by_hand)(*expected)
    elif place == "looked at before":
        jax.grad(tap.loss)(params_of(), batch_of(1))
        found = jax.jit(step)(*given, batch)[:2]
    else:
        mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        specs = {"in_specs": (P(), P(), P("data")), "out_specs": P()}
        found = jax.jit(jax.shard_map(step, mesh=mesh, **specs))(*given, batch)[:2]
    same(found, expected)


@pytest.mark.parametrize("way", ["pmap", "shard_map"])
@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="pmap's axes can't be seen")
def test_devices_by_themselves_are_refused(way):
    """A trainer averages their gradients, which a tap doesn't use."""
    tap = ldro.tap(task_losses, TASKS)
    tx = optax.chain(tap(ldro.transform(TASKS)), optax.sgd(0.1))
    given = params_of(), tx.init(params_of()), batch_of(0)

    def step(params, state, batch):
        gradient = jax.lax.pmean(jax.grad(tap.loss)(params, batch), "data")
        return tx.update(gradient, state, params)

    if way == "pmap":
        given = jax.tree.map(lambda x: jnp.stack([x, x]), given)
        spread = jax.pmap(step, axis_name="data")
    else:
        mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        specs = {"in_specs": (P(), P(), P("data")), "out_specs": P(), "check_vma": False}
        spread = jax.shard_map(step, mesh=mesh, **specs)
    with pytest.raises(ValueError, match="each device would weigh by its own rows"):
        spread(*given)


def test_a_gradient_that_is_not_compiled_and_an_update_that_is():
    """The update would keep the first batch, as a constant of its program."""
    tap = ldro.tap(task_losses, TASKS)
    tx = tap(ldro.transform(TASKS))
    gradient = jax.grad(tap.loss)(params_of(), batch_of(0))
    with pytest.raises(ValueError, match="in another trace alone"):
        jax.jit(tx.update)(gradient, tx.init(params_of()), params_of())


def refusals():
    """Trainers inside which no tap works, each with what it is told."""
    tap = ldro.tap(task_losses, TASKS)
    tx = optax.chain(tap(ldro.transform(TASKS)), optax.sgd(0.1))
    params, batch = params_of(), batch_of(0)
    state = tx.init(params)
    grad = jax.grad(tap.loss)

    def accumulated(params, state, batch):
        def add(total, rows):
            return jax.tree.map(jnp.add, total, grad(params, rows)), None

        parts = jax.tree.map(lambda x: x.reshape(2, 6, *x.shape[1:]), batch)
        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
        return tx.update(total, state, params)

    def twice(params, state, batch):
        grad(params, batch)
        return tx.update(grad(params, batch), state, params)

    def never(params, state, batch):
        tap.loss(params, batch)
        return tx.update(params, state, params)

    def in_two(params, state, batch):
        gradient = jax.jit(grad)(params, batch)
        return tx.update(gradient, state, params)

    def recomputed(params, state, batch):
        gradient = jax.grad(jax.checkpoint(tap.loss))(params, batch)
        return tx.update(gradient, state, params)

    def dependent(params, state, batch):
        def loss(params):
            return tap.loss(params, batch | {"y": batch["y"] * params["out"].sum()})

        return tx.update(jax.grad(loss)(params), state, params)

    def cast(params, state, batch):
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        rows = batch | {name: batch[name].astype(jnp.bfloat16) for name in ("x", "y")}
        return tx.update(grad(half, rows), state, params)

    def others(params, state, batch):
        return tx.update(grad(params, batch), state, params | {"more": jnp.zeros(2)})

    def micro_steps(params, state, batch):
        every = optax.MultiSteps(tx, 2)
        return every.update(grad(params, batch), every.init(params), params)

    steps = {
        accumulated: "but it was in another trace alone.* optax.MultiSteps after the weighting",
        twice: "must be differentiated once, but it was 2 times",
        never: "but it was not",
        # The second time these functions aren't traced.
        in_two: "(in another trace alone|not).* a function that is compiled by itself",
        recomputed: "(in another trace alone|not).* jax.checkpoint",
        dependent: "nothing that tap.loss is given may depend on them",
        cast: r"leaf \['in'\] was bfloat16 instead of float32.* must be cast in losses_fn",
        others: r"parameters of update, but it has no leaf \['more'\]",
        micro_steps: "optax.MultiSteps would hand over the statistics of the last mini-batch",
    }
    return steps, (params, state, batch)


# optax.MultiSteps divides a float by an integer.
@jax.numpy_dtype_promotion("standard")
def test_where_it_can_not_work_it_says_so():
    steps, given = refusals()
    for step, message in steps.items():
        # The second time as well.
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                jax.jit(step)(*given)


def test_what_is_left_of_a_step_that_failed_is_no_call_of_the_next():
    tap = ldro.tap(task_losses, TASKS)
    tx = optax.chain(tap(ldro.transform(TASKS)), optax.sgd(0.1))
    params, state = params_of(), tx.init(params_of())

    @jax.jit
    def failing(params, batch):
        jax.grad(tap.loss)(params, batch)
        raise RuntimeError("elsewhere")

    with pytest.raises(RuntimeError, match="elsewhere"):
        failing(params, batch_of(0))
    jax.jit(trainer(tap.loss, tx))(params, state, batch_of(0))


def test_it_takes_a_weighting_alone():
    tap = ldro.tap(task_losses, TASKS)
    with pytest.raises(ValueError, match="takes the weighting alone.* Chain the optimizer after"):
        tap(optax.chain(ldro.transform(TASKS), optax.adam(0.1)))
    with pytest.raises(ValueError, match="tap has 3 tasks, but the weighting has 2"):
        tap(ldro.transform(2))
    with pytest.raises(ValueError, match="losses_fn must be a function"):
        ldro.tap(None, TASKS)
    assert tap(transform.weighted(weighting.average(), TASKS)).init(params_of())


@jax.numpy_dtype_promotion("standard")
def test_accumulating_after_the_weighting_works():
    tap = ldro.tap(task_losses, TASKS)
    make = functools.partial(ldro.transform, TASKS, lookahead_lr=0.1, weight_lr=0.5)
    every = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    tx, told = optax.chain(tap(make()), every), optax.chain(make(), every)
    step, params, state = jax.jit(trainer(tap.loss, tx)), params_of(), tx.init(params_of())
    other, expected = params_of(), told.init(params_of())
    for number in range(4):
        batch = batch_of(number)
        params, state, _ = step(params, state, batch)
        losses_fn = functools.partial(lambda batch, p: task_losses(p, batch), batch)
        updates, expected = told.update(None, expected, other, losses_fn=losses_fn)
        other = optax.apply_updates(other, updates)
    same((params, state), (other, expected))


def test_the_blocks_of_the_docs_run_as_they_stand():
    """Those of mixed batches and of the tap, after the page's first."""
    page = pathlib.Path(__file__).parents[2] / "docs" / "optax.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    mine = [block for block in blocks if "ldro.Rows(" in block]
    assert len(mine) == 2
    names = {}
    with jax.numpy_dtype_promotion("standard"):
        for block in [blocks[0], *mine]:
            exec(compile(block, str(page), "exec"), names)
    assert ldro.weights(names["opt_state"]).shape == (3,)
    assert jnp.isfinite(names["loss"])
