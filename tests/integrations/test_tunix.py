"""Tunix's trainer, as it is with a tap and ours: bash scripts/test_trainers.sh tunix."""

import contextlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import pages

from ldro_jax import ldro, transform
from ldro_jax import weighting as weighting_lib

pytest.importorskip("tunix", reason="Tunix isn't installed (scripts/test_trainers.sh)")

import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout
from tunix.sft import peft_trainer
from tunix.sft.dpo import dpo_trainer
from tunix.tests import test_common

from ldro_jax.integrations import tunix

TASKS, ROWS = 3, 12
# Tunix's own warnings are not ours, and it adds types as it likes.
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.usefixtures("as_trainers_promote"),
]


@pytest.fixture(autouse=True)
def as_trainers_promote():
    # In all threads: rollouts have one of their own.
    strict = jax.config.jax_numpy_dtype_promotion, jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", strict[0])
    jax.config.update("jax_numpy_rank_promotion", strict[1])


class Model(nnx.Module):
    """Two layers over embedded tokens, the first maybe with LoRA."""

    def __init__(self, *, lora=False, dtype=jnp.float32):
        rngs = nnx.Rngs(0)
        # Not nnx.Embed: on explicit axes its rows would have to say where they are.
        self.embed = nnx.Linear(32, 16, use_bias=False, dtype=dtype, rngs=rngs)
        first = nnx.Linear(16, 32, dtype=dtype, rngs=rngs)
        self.first = first
        if lora:
            self.first = nnx.LoRA(16, 2, 32, base_module=first, dtype=dtype, rngs=rngs)
        self.last = nnx.Linear(32, 32, dtype=dtype, rngs=rngs)

    def __call__(self, tokens):
        return self.last(jax.nn.relu(self.first(self.embed(jax.nn.one_hot(tokens, 32)))))


def token_losses(model, tokens):
    logits = model(tokens[:, :-1]).astype(jnp.float32)
    # Integer labels are a gather again.
    return optax.softmax_cross_entropy(logits, jax.nn.one_hot(tokens[:, 1:], 32))


def task_losses(model, tokens, task):
    return ldro.Rows(token_losses(model, tokens), task)


def batches(number, *, seed=0):
    """Sequences that count up in steps of one, two and three, the last with mistakes."""
    rng = np.random.default_rng(seed)
    task = np.arange(ROWS, dtype=np.int32) % TASKS
    for _ in range(number):
        tokens = rng.integers(0, 32, (ROWS, 1)) + np.arange(9) * (task[:, None] + 1)
        tokens += (task[:, None] == 2) * rng.integers(0, 8, (ROWS, 9))
        yield {"tokens": (tokens % 32).astype(np.int32), "task": task}


def weighting(interval=1):
    return ldro.transform(TASKS, lookahead_lr=0.1, weight_lr=0.5, interaction_interval=interval)


def config(**options):
    return peft_trainer.TrainingConfig(eval_every_n_steps=4, **options)


def made(way, model, optimizer, given, interval=1, loss=task_losses):
    """A trainer, with a tap in Tunix's own or as ours."""
    if way == "ours":
        trainer = tunix.PeftTrainer(model, optimizer, given, weighting=weighting(interval))
        return trainer.with_loss_fn(loss)
    tap = ldro.tap(loss, TASKS)
    chained = optax.chain(tap(weighting(interval)), optimizer)
    return peft_trainer.PeftTrainer(model, chained, given).with_loss_fn(tap.loss)


def plain(tree):
    """The arrays, by name; keys of random streams left out."""
    return nnx.to_pure_dict(nnx.state(tree, nnx.Not(nnx.RngState)))


def weights(trainer):
    return np.asarray(ldro.weights(trainer.optimizer.opt_state))


def same(found, expected, **close):
    close = close or {"rtol": 1e-5, "atol": 1e-6}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **close), found, expected)


WAYS = ["tap", "ours"]


def by_hand(tx, steps):
    """A loop of one's own on the same batches."""
    model = Model()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, batch):
        graph, _, rest = nnx.split(model, nnx.Param, ...)
        losses_fn = lambda p: task_losses(nnx.merge(graph, p, rest), **batch)  # noqa: E731
        optimizer.update(model, None, losses_fn=losses_fn)

    for batch in batches(steps):
        step(model, optimizer, batch)
    return model, optimizer


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_step_is_that_of_a_loop_of_jax_grad(way, lora):
    wrt = nnx.LoRAParam if lora else nnx.Param
    model, (batch,) = Model(lora=lora), batches(1)
    graph, params, rest = nnx.split(model, wrt, ...)
    gradients = []
    for task in range(TASKS):
        rows = batch["tokens"][batch["task"] == task]
        loss = lambda p, rows=rows: token_losses(nnx.merge(graph, p, rest), rows).mean()  # noqa: E731
        gradients.append(jax.grad(loss)(params))
    flat = np.stack([jax.flatten_util.ravel_pytree(g)[0] for g in gradients])
    begin = jax.flatten_util.ravel_pytree(params)[0]
    before = plain(nnx.state(model, nnx.Not(wrt)))

    trainer = made(way, model, optax.sgd(1.0), config())
    trainer.train([batch])
    state = trainer.optimizer.opt_state
    np.testing.assert_allclose(ldro.interaction(state), flat @ flat.T, rtol=2e-5, atol=1e-6)
    end = jax.flatten_util.ravel_pytree(nnx.state(model, wrt))[0]
    np.testing.assert_allclose(begin - end, weights(trainer) @ flat, rtol=1e-4, atol=1e-6)
    assert np.ptp(weights(trainer)) > 1e-3
    same(plain(nnx.state(model, nnx.Not(wrt))), before)


@pytest.mark.parametrize("interval", [1, 10])
def test_both_ways_and_a_loop_train_the_same(interval):
    ends = []
    for way in WAYS:
        trainer = made(way, Model(), optax.adam(1e-2), config(max_steps=12), interval)
        trainer.train(batches(12), list(batches(2, seed=5)))
        ends.append((plain(trainer.model), weights(trainer)))
    model, optimizer = by_hand(optax.chain(weighting(interval), optax.adam(1e-2)), 12)
    ends.append((plain(model), np.asarray(ldro.weights(optimizer.opt_state))))
    same(ends[0], ends[2])
    same(ends[1], ends[2])


@pytest.mark.parametrize("way", WAYS)
def test_it_goes_on_after_a_restart_to_the_bit(way, tmp_path):
    """The weights, their state and the matrix are in Tunix's checkpoints."""
    options = ocp.CheckpointManagerOptions(save_interval_steps=1)
    ends = []
    for name, parts in {"whole": [10], "again": [4, 10]}.items():
        for steps in parts:
            given = config(
                max_steps=steps,
                checkpoint_root_directory=str(tmp_path / name),
                checkpointing_options=options,
            )
            trainer = made(way, Model(), optax.adam(1e-2), given, interval=3)
            trainer.train(batches(10))
        assert trainer.train_steps == 10
        ends.append((plain(trainer.model), plain(trainer.optimizer)))
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_accumulation_weighs_each_micro_batch():
    given = config(max_steps=3, gradient_accumulation_steps=2)
    trainer = made("ours", Model(), optax.sgd(0.1), given)
    trainer.train(batches(6))
    assert trainer.train_steps == 3
    every = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    model, _ = by_hand(optax.chain(weighting(), every), 6)
    same(plain(trainer.model), plain(model))
    # Tunix would put it around the weighting.
    with pytest.raises(ValueError, match="statistics of the last mini-batch alone"):
        made("tap", Model(), optax.sgd(0.1), given)


@pytest.mark.parametrize("way", WAYS)
def test_computing_in_bfloat16_keeps_weights_in_float32(way):
    ends = []
    for dtype in (jnp.float32, jnp.bfloat16):
        trainer = made(way, Model(dtype=dtype), optax.sgd(0.1), config())
        trainer.train(batches(4))
        assert weights(trainer).dtype == np.float32
        ends.append(weights(trainer))
    same(*ends, rtol=2e-2)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("way", WAYS)
def test_on_a_mesh_it_trains_the_same(way, kind):
    ends = []
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    for where in (contextlib.nullcontext(), mesh):
        model = Model()
        if where is mesh:
            nnx.update(model, jax.device_put(nnx.state(model), NamedSharding(mesh, P())))
        trainer = made(way, model, optax.sgd(0.1), config(data_sharding_axis=("data",)))
        with where:
            trainer.train(batches(4))
        ends.append((plain(model), weights(trainer)))
    same(*jax.tree.map(np.asarray, ends), rtol=1e-4, atol=1e-5)


def test_what_the_trainer_logs_and_the_loss_gives_besides():
    logged = []

    def with_aux(model, tokens, task):
        return task_losses(model, tokens, task), {"mean": token_losses(model, tokens).mean()}

    class Listening(tunix.PeftTrainer):
        def _post_process_train_step(self, aux):
            logged.append(float(aux["mean"]))

        def _buffer_metrics(self, *args, **kwargs):
            for name, (value, _) in (kwargs.get("additional_metrics") or {}).items():
                logged.append((name, float(value)))
            return super()._buffer_metrics(*args, **kwargs)

    model, (batch,) = Model(), batches(1)
    begin = jax.flatten_util.ravel_pytree(nnx.state(model, nnx.Param))[0]
    trainer = Listening(model, optax.sgd(1.0), config(), weighting=weighting())
    trainer.with_loss_fn(with_aux, has_aux=True).train([batch], [batch])
    end = jax.flatten_util.ravel_pytree(nnx.state(model, nnx.Param))[0]
    (name, norm), mean = logged
    assert name == "grad_norm"
    np.testing.assert_allclose(norm, np.linalg.norm(end - begin), rtol=1e-4)
    np.testing.assert_allclose(mean, token_losses(Model(), batch["tokens"]).mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="weighting must be a Weighted, such as ldro.transform"):
        tunix.PeftTrainer(model, optax.sgd(1.0), config(), weighting=optax.sgd(1.0))


@pytest.mark.parametrize("every", [None, 2])
def test_the_learning_rate_is_found_where_tunix_looks_for_it(every):
    """For its log, however deep in the chain."""
    rate = optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(0.1, 0.0, 10))
    found = []
    for optimizer in (rate, optax.chain(optax.clip(1.0), rate), optax.sgd(0.1)):
        given = config(max_steps=3, gradient_accumulation_steps=every)
        trainer = made("ours", Model(), optimizer, given)
        trainer.train(batches(6))
        found.append(trainer._try_get_learning_rate())
    np.testing.assert_allclose(found[:2], 0.08, rtol=1e-6)
    assert found[2] is None


def test_the_block_of_the_docs_runs():
    names = {
        **{"model": Model(), "config": config(), "batches": batches(2)},
        **{"token_losses": token_losses, "ldro": ldro, "optax": optax},
    }
    pages.run("trainers.md", "tunix.PeftTrainer", names)
    assert weights(names["trainer"]).shape == (TASKS,)


def test_grpo_weighs_kinds_of_prompts():
    """The whole of it, with rollouts; the page's block is Tunix's policy loss."""
    vocabulary = test_common.MockVocab()
    given = test_common.ModelConfig(vocab_size=vocabulary.GetPieceSize(), num_layers=1)
    actor, reference = (test_common.ToyTransformer(given, rngs=nnx.Rngs(n)) for n in (0, 0))
    names = {"jax": jax, "jnp": jnp, "ldro": ldro, "optax": optax, "weighting": weighting_lib}
    names["transform"] = transform
    names["task_of"] = lambda ids: jnp.int32((ids == 5).any(axis=1))
    names = pages.run("trainers.md", "register_policy_loss_fn", names)
    seen = []

    def rewards(prompts, completions, **others):
        seen.extend(prompts)
        return [float(len(set(str(completion).split()))) for completion in completions]

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    roles = rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT
    cluster = rl_cluster.RLCluster(
        actor=actor,
        reference=reference,
        tokenizer=vocabulary,
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_engine="vanilla",
            offload_to_cpu=False,
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=names["optimizer"], eval_every_n_steps=10, max_steps=3
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=6, max_prompt_length=8, kv_cache_size=64
            ),
        ),
    )
    learner = grpo_learner.GRPOLearner(
        rl_cluster=cluster, reward_fns=rewards, algo_config=names["algo_config"]
    )
    prompts = np.array(["hello world", "My name", "hello there", "is Tunix"])
    learner.train([{"prompts": prompts, "answer": prompts}] * 3)
    assert {*seen} == {*prompts}
    state = cluster.actor_trainer.optimizer.opt_state
    assert ldro.weights(state).shape == (2,)
    assert np.isfinite(ldro.interaction(state)).all()
    assert np.diagonal(ldro.interaction(state)).min() > 0


def test_dpo_weighs_kinds_of_prompts():
    """The page's block; a step is that of a loop of gradients of Tunix's own loss."""
    rng = np.random.default_rng(0)
    ids = {part: rng.integers(3, 22, (8, 5)).astype(np.int32) for part in ("prompt", "chosen")}
    ids["rejected"] = rng.integers(3, 22, (8, 5)).astype(np.int32)
    batch = {f"{part}_ids": each for part, each in ids.items()}
    batch |= {f"{part}_mask": np.ones((8, 5), np.int32) for part in ids}
    tasks = ids["prompt"][:, 0] % 2
    config = test_common.ModelConfig(vocab_size=22, num_layers=1)
    model, reference = (test_common.ToyTransformer(config, rngs=nnx.Rngs(n)) for n in (0, 1))
    options = dpo_trainer.DPOTrainingConfig(eval_every_n_steps=10, max_steps=1, beta=0.5)

    begin = jax.flatten_util.ravel_pytree(nnx.state(model))[0]
    alone = dpo_trainer.DPOTrainer(nnx.clone(model), reference, optax.sgd(1.0), options)

    flat = []
    for task in range(2):
        example = alone._prepare_inputs({k: x[tasks == task] for k, x in batch.items()})
        loss = lambda m, e=example: dpo_trainer.dpo_loss_fn(m, e, beta=0.5)[0]  # noqa: E731
        flat.append(jax.flatten_util.ravel_pytree(nnx.grad(loss)(nnx.clone(model)))[0])
    flat = np.stack(flat)
    names = {"jax": jax, "ldro": ldro, "optax": optax, "model": model, "reference": reference}
    names |= {"config": options, "task_of": lambda ids: ids[:, 0] % 2, "batches": [batch]}
    trainer = pages.run("trainers.md", "DPOTrainer", names)["trainer"]
    state = trainer.optimizer.opt_state
    # Its diagonal is without the noise.
    np.testing.assert_allclose(ldro.interaction(state)[0, 1], flat[0] @ flat[1], rtol=1e-4)
    moved = begin - jax.flatten_util.ravel_pytree(nnx.state(model))[0]
    assert np.abs(moved).max() > 0


def test_the_example_of_languages_trains(tmp_path, capsys, monkeypatch):
    examples = pathlib.Path(__file__).parents[2] / "examples"
    monkeypatch.syspath_prepend(str(examples))
    import tunix_languages

    monkeypatch.setattr(tunix_languages, "STEPS", 30)
    for language in ("en", *tunix_languages.LANGUAGES):
        (tmp_path / language).mkdir()
        for split in ("train", "validation"):
            text = f"{language} {language[::-1]} {split[0]}, " * 100
            (tmp_path / language / f"{split}.txt").write_text(text, encoding="utf-8")
    tunix_languages.main(tmp_path, 1)
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [line[-7:] for line in table if line[0] == "0"]
    assert len(rows) == len(tunix_languages.METHODS)
    # Of 256 bytes that are as likely as each other.
    assert all(1 < float(worst) < 100 for *_, worst in rows)
