"""MaxText's pretraining with task weights: bash scripts/test_trainers.sh maxtext."""

import contextlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import pages

from ldro_jax import ldro, transform
from ldro_jax import weighting as weighting_lib

pytest.importorskip("maxtext", reason="MaxText isn't installed (scripts/test_trainers.sh)")

import maxtext
from jax.flatten_util import ravel_pytree
from maxtext.input_pipeline import synthetic_data_processing
from maxtext.optimizers import optimizers
from maxtext.trainers.pre_train import train
from maxtext.utils import max_utils

from ldro_jax.integrations import maxtext as ldro_maxtext

TASKS = 3
# Its warnings are not ours, and it adds types as it likes.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("as_trainers_promote"),
]
BASE = pathlib.Path(maxtext.__file__).parent / "configs" / "base.yml"
TINY = {
    "run_name": "tiny",
    "dataset_type": "synthetic",
    "hardware": "cpu",
    "skip_jax_distributed_system": True,
    "enable_goodput_recording": False,
    "enable_checkpointing": False,
    "attention": "dot_product",
    "base_emb_dim": 32,
    "base_num_query_heads": 2,
    "base_num_kv_heads": 2,
    "head_dim": 16,
    "base_mlp_dim": 64,
    "base_num_decoder_layers": 2,
    "vocab_size": 64,
    "max_target_length": 16,
    "per_device_batch_size": 12,
    "dtype": "float32",
    "learning_rate": 1.0,
    "warmup_steps_fraction": 0.0,
    "learning_rate_final_fraction": 1.0,
    "gradient_clipping_threshold": 0.0,
    "opt_type": "sgd",
}


@pytest.fixture(autouse=True)
def as_trainers_promote():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def tasks_of(batch):
    return batch["inputs"][:, 0] % TASKS


def weighting(interval=1):
    return ldro.transform(TASKS, lookahead_lr=0.1, weight_lr=0.5, interaction_interval=interval)


def arguments(folder, **options):
    given = TINY | {"base_output_directory": folder} | options
    return ["train", str(BASE), *(f"{name}={value}" for name, value in given.items())]


class Run:
    """A run of MaxText on its synthetic batch, the same in each step."""

    def __init__(self, folder, weigh=weighting, of=tasks_of, **options):
        logged = folder / "metrics.jsonl"
        logged.unlink(missing_ok=True)
        argv = arguments(folder, metrics_file=logged, **options)
        within = ldro_maxtext.weighted(weigh(), of) if weigh else contextlib.nullcontext()
        with within, pytest.MonkeyPatch.context() as patch:
            step = train.train_step

            def noted(graph, *args):
                self.graph = graph
                return step(graph, *args)

            patch.setattr(train, "train_step", noted)
            self.config, recorder = train.initialize(argv)
            self.end = train.train_loop(self.config, recorder)
        self.logged = [json.loads(line) for line in logged.read_text().splitlines()]
        self.weights = [[of.get(f"tasks/weight_{n}") for n in range(TASKS)] for of in self.logged]

    @property
    def state(self):
        return nnx.merge(self.graph, self.end)

    @property
    def params(self):
        params = nnx.to_pure_dict(nnx.state(self.state.model, nnx.Param))
        return ravel_pytree(jax.device_get(params))[0]

    @property
    def batch(self):
        mesh = self.state.model.mesh
        return next(synthetic_data_processing.SyntheticDataIterator(self.config, mesh))


def gradients(run, masks):
    """Of MaxText's own loss, once for each task, whose tokens alone count, ``[N, P]``."""
    graph, params, rest = nnx.split(run.state.model, nnx.Param, ...)

    def loss(params, mask):
        data = run.batch
        data["targets_segmentation"] *= mask
        model = nnx.merge(graph, params, rest, copy=True)
        return train.loss_fn(model, run.config, data, None, None)[0]

    found = [jax.grad(loss)(params, mask) for mask in masks]
    return np.stack([ravel_pytree(nnx.to_pure_dict(each))[0] for each in found])


def by_rows(batch):
    return [(tasks_of(batch) == task)[:, None] for task in range(TASKS)]


def by_tokens(batch):
    return [packed(batch) == task for task in range(TASKS)]


def packed(batch):
    """A task for each document of a packed row, and none for the last."""
    return batch["targets_segmentation"] - 1


EXPERTS = {
    "decoder_block": "mixtral",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "base_moe_mlp_dim": 64,
    "sparse_matmul": False,
    "megablox": False,
    "capacity_factor": 2.0,
    "load_balance_loss_weight": 0.5,
}
KINDS = {
    "rows": (tasks_of, by_rows, {}),
    "tokens": (packed, by_tokens, {"packing": True, "max_segments_per_seq": 4}),
    "experts": (tasks_of, by_rows, EXPERTS),
    "unscanned": (tasks_of, by_rows, {"scan_layers": False}),
    "recomputed": (tasks_of, by_rows, {"remat_policy": "full"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_a_loop_of_jax_grad(kind, tmp_path):
    of, masks, options = KINDS[kind]
    still = Run(tmp_path, of=of, steps=1, learning_rate=1e-30, **options)
    once = Run(tmp_path, of=of, steps=1, **options)
    expected = gradients(still, masks(still.batch))
    state = once.state.optimizer.opt_state
    np.testing.assert_allclose(ldro.interaction(state), expected @ expected.T, rtol=1e-4, atol=1e-5)
    weights = np.asarray(ldro.weights(state))
    np.testing.assert_allclose(still.params - once.params, weights @ expected, rtol=1e-3, atol=2e-6)
    assert np.ptp(weights) > 1e-3
    np.testing.assert_allclose(once.weights[0], weights, rtol=1e-6)
    (logged,) = once.logged
    norm = np.linalg.norm(weights @ expected)
    np.testing.assert_allclose(logged["learning/raw_grad_norm"], norm, rtol=1e-4)
    # What MaxText says of all tokens is the same as ever.
    plain = Run(tmp_path, weigh=None, steps=1, **options)
    np.testing.assert_allclose(
        logged["learning/lm_loss"], plain.logged[0]["learning/lm_loss"], rtol=1e-6
    )


LIKE_MAXTEXT = {
    "dropout": {"dropout_rate": 0.2},
    "heads": {"mtp_num_layers": 1, "mtp_loss_scaling_factor": 0.3},
    "grad_dtype": {"grad_dtype": "bfloat16"},
}


@pytest.mark.parametrize("kind", LIKE_MAXTEXT)
def test_equal_weights_are_maxtext_itself(kind, tmp_path):
    """With as many tokens of each task the weighted loss is the average one."""

    def equal():
        return transform.weighted(weighting_lib.average(), TASKS)

    of = lambda batch: jnp.arange(batch["inputs"].shape[0]) % TASKS  # noqa: E731
    options = {"steps": 4, "opt_type": "adamw", "learning_rate": 1e-2}
    options |= {"gradient_clipping_threshold": 1.0} | LIKE_MAXTEXT[kind]
    ours, plain = (Run(tmp_path, weigh, of, **options) for weigh in (equal, None))
    np.testing.assert_allclose(ours.params, plain.params, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(ours.logged, plain.logged, strict=True):
        for name in ("loss", "grad_norm", "raw_grad_norm", "param_norm", "perplexity"):
            key = f"learning/{name}"
            np.testing.assert_allclose(mine[key], theirs[key], rtol=1e-4)


def test_it_goes_on_after_a_restart_to_the_bit(tmp_path):
    """The weights, their state and the matrix are in MaxText's checkpoints."""
    options = {"enable_checkpointing": True, "async_checkpointing": False}
    # The schedule of both is that of ten steps.
    options |= {"checkpoint_period": 1, "learning_rate": 0.01, "learning_rate_schedule_steps": 10}
    options |= {"opt_type": "adamw", "remove_size_one_mesh_axis_from_type": True}
    ends = []
    for name, parts in {"whole": [10], "again": [4, 10]}.items():
        for steps in parts:
            weigh = lambda: weighting(3)  # noqa: E731
            run = Run(tmp_path / name, weigh, steps=steps, **options)
        ends.append((nnx.to_pure_dict(run.end.filter(nnx.Not(nnx.RngState))), run.weights[-6:]))
    assert len(run.weights) == 6
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.parametrize("mode", ["auto", "explicit"])
def test_a_mesh_gives_the_same_weights(mode, tmp_path):
    """Whether rows alone are split over eight devices or parameters as well."""
    options = {"steps": 3, "learning_rate": 0.1, "dtype": "float32"}
    data = {"ici_data_parallelism": 8, "ici_fsdp_parallelism": 1}
    model = {"ici_fsdp_parallelism": 4, "ici_tensor_parallelism": 2, "shard_mode": mode}
    runs = [Run(tmp_path, **options, **split) for split in (data, model)]
    np.testing.assert_allclose(runs[0].weights, runs[1].weights, rtol=1e-4)
    np.testing.assert_allclose(runs[0].params, runs[1].params, rtol=1e-3, atol=1e-5)
    assert len(jax.devices()) == 8


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps=2. Set it to 1"),
        ({"skip_step_on_spikes": True}, "skip_step_on_spikes=True"),
        ({"num_vocab_tiling": 2}, "num_vocab_tiling=2"),
        ({"quantization": "fp8"}, "this quantization"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_what_cannot_be_weighed_is_refused(options, what, tmp_path):
    with pytest.raises(ValueError, match=what):
        Run(tmp_path, steps=1, **options)


def test_maxtext_is_as_before_afterwards():
    names = [(train, "loss_fn"), (train, "train_step"), (optimizers, "get_optimizer")]
    names.append((max_utils, "cross_entropy_with_logits"))
    before = [getattr(module, name) for module, name in names]
    with (
        pytest.raises(KeyError, match="own"),
        ldro_maxtext.weighted(weighting(), tasks_of),
    ):
        assert train.loss_fn is not before[0]
        raise KeyError("own")
    assert [getattr(module, name) for module, name in names] == before
    for given, what in (((None, tasks_of), "weighting"), ((weighting(), 3), "tasks_of")):
        with pytest.raises(ValueError, match=what), ldro_maxtext.weighted(*given):
            pass


def test_the_block_of_the_page_runs_as_it_stands(tmp_path):
    logged = tmp_path / "metrics.jsonl"
    argv = arguments(tmp_path, steps=2, metrics_file=logged)
    pages.run("trainers.md", "maxtext.weighted", {"ldro": ldro, "argv": argv})
    *_, last = map(json.loads, logged.read_text().splitlines())
    assert sum(last[f"tasks/weight_{task}"] for task in range(5)) == pytest.approx(1)
