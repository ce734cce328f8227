"""What a whole training step costs, beside the same step in TorchJD.

    taskset -c 0 python benchmarks/torchjd_steps.py
    taskset -c 0 python benchmarks/torchjd_steps.py --torchjd

Milliseconds of one step (losses, interactions, weights, weighted gradient, SGD), the median of up
to 200 in at most five seconds, and the ratio to the step of the average loss in the same framework.
With `--torchjd`, the same steps in an environment where torch and TorchJD are installed (jax need
not be), by both of its engines: `autojac` pulls every task back and aggregates the Jacobian,
`autogram` computes the Gram matrix layer by layer and pulls the weighted loss back. Ours is
compiled; torch runs eagerly, for TorchJD can't differentiate compiled functions in parallel.

Parameters and batches are the same in both, so the losses can be compared: `loss` is the mean one
before the tenth step, and `worst` that of the task that is worst then. PCGrad draws random orders,
and TorchJD solves MGDA more loosely and regularises UPGrad; the other methods should agree.
TorchJD's PCGrad sums where ours averages, which its learning rate makes up for.

Without `taskset` both use all the cores they may. Where other programs use them too, torch can wait
for its threads far longer than it computes. The file isn't called torchjd.py because that name
would hide the package from every script beside it.
"""

import argparse
import itertools
import os

import methods
import numpy as np

INPUTS, OUTPUTS = 64, 10
LEARNING_RATE = 0.01
STEPS = 10  # before timing
OURS = ("mgda", "upgrad", "cagrad", "pcgrad", "nash_mtl", "fairgrad", "aligned_mtl", "imtl_g")
THEIRS = ("MGDA", "UPGrad", "CAGrad", "PCGrad", "NashMTL", "FairGrad", "AlignedMTL", "IMTLG")


def problem(args):
    """Parameters [(matrix, bias), ...] and a batch [task, example, ...]; tasks partly conflict."""
    rng = np.random.default_rng(0)
    sizes = (INPUTS, args.width, args.width, OUTPUTS)
    params = [
        (np.float32(rng.normal(size=(m, n)) * (2 / m) ** 0.5), np.zeros(n, np.float32))
        for m, n in itertools.pairwise(sizes)
    ]
    teachers = rng.normal(size=(INPUTS, OUTPUTS)) + rng.normal(size=(args.tasks, INPUTS, OUTPUTS))
    x = rng.normal(size=(args.tasks, args.examples, INPUTS))
    y = np.argmax(x @ teachers, axis=-1)
    return params, {"x": np.float32(x), "y": y.astype(np.int32)}


def ours(args):
    """For each method what makes its step, and a function: the losses seen by the last step."""
    import jax
    import jax.numpy as jnp
    import optax

    from ldro_jax import transform, weighting

    print(f"jax {jax.__version__}, threads: at most {cores()}")
    initial, batch = jax.tree.map(jnp.asarray, problem(args))

    def loss_fn(params, task):
        x = task["x"]
        for matrix, bias in params[:-1]:
            x = jax.nn.relu(x @ matrix + bias)
        logits = x @ params[-1][0] + params[-1][1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, task["y"]).mean()

    def make(method):
        weighted = transform.weighted(method, args.tasks, interaction_interval=1)
        tx = optax.chain(weighted, optax.sgd(LEARNING_RATE))

        def program(params, state, batch):
            updates, state = tx.update(None, state, params, loss_fn=loss_fn, batch=batch)
            return optax.apply_updates(params, updates), state

        compiled = jax.jit(program, donate_argnums=(0, 1))
        carry = jax.tree.map(jnp.copy, (initial, tx.init(initial)))

        def step():
            nonlocal carry
            carry = jax.block_until_ready(compiled(*carry, batch))

        def losses():
            found = transform.find_state(carry[1])
            # A step that is not finite leaves no other trace.
            lost = found.nonfinite.any() | found.unmeasured.any()
            check_finite(jnp.where(lost, jnp.nan, found.losses), *jax.tree.leaves(carry[0]))
            return np.asarray(found.losses)

        return step, losses

    makers = {"average": lambda: make(weighting.average())}
    for name in OURS:
        options = {"cagrad": {"c": 0.5}, "fairgrad": {"alpha": 2.0}}
        method = weighting.create(name, options.get(name, {}))
        makers[name] = lambda method=method: make(method)
    return makers


def theirs(args):
    """The same with torch and TorchJD."""
    import torch
    from torch import nn
    from torchjd import aggregation, autogram, autojac

    torch.set_num_threads(cores())
    print(f"torch {torch.__version__}, threads: {torch.get_num_threads()}")
    initial, batch = problem(args)
    x, y = torch.tensor(batch["x"]), torch.tensor(batch["y"]).long()
    entropy = nn.CrossEntropyLoss(reduction="none")

    def make(kind, engine_name=None):
        layers = []
        for matrix, bias in initial:
            linear = nn.Linear(*matrix.shape)
            linear.load_state_dict({"weight": torch.tensor(matrix.T), "bias": torch.tensor(bias)})
            layers += [linear, nn.ReLU()]
        model = nn.Sequential(*layers[:-1])
        params = list(model.parameters())
        rate = LEARNING_RATE / (args.tasks if kind.startswith("PCGrad") else 1)
        optimizer = torch.optim.SGD(params, lr=rate)
        if engine_name is not None:
            arguments = {"CAGrad": {"c": 0.5}, "NashMTL": {"n_tasks": args.tasks}}
            arguments["FairGrad"] = {"alpha": 2.0}
            options = arguments.get(kind.removesuffix("Weighting"), {})
            method = getattr(aggregation, kind)(**options)
        if engine_name == "autogram":
            # The model treats the tasks independently: one backward pass does for all of them.
            engine = autogram.Engine(model, batch_dim=0)
        last = None

        def step():
            nonlocal last
            losses = entropy(model(x).flatten(0, 1), y.flatten()).view(y.shape).mean(dim=1)
            if engine_name is None:
                losses.mean().backward()
            elif engine_name == "autojac":
                autojac.backward(losses, inputs=params, parallel_chunk_size=args.chunk)
                autojac.jac_to_grad(params, method)
            else:
                losses.backward(method(engine.compute_gramian(losses)))
            optimizer.step()
            optimizer.zero_grad()
            last = losses.detach()

        def losses():
            check_finite(last, *(p.detach() for p in params))
            return last.numpy()

        return step, losses

    makers = {"average": lambda: make("average")}
    for name in THEIRS:
        makers[f"{name}, autojac"] = lambda name=name: make(name, "autojac")
        makers[f"{name}, autogram"] = lambda name=name: make(f"{name}Weighting", "autogram")
    return makers


def check_finite(*arrays):
    if not all(np.isfinite(np.asarray(array)).all() for array in arrays):
        raise FloatingPointError("Some losses, weights or parameters are not finite.")


def cores():
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torchjd", action="store_true", help="time TorchJD's steps")
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--examples", type=int, default=16, help="examples of each task")
    parser.add_argument("--width", type=int, default=256, help="of the two hidden layers")
    parser.add_argument("--chunk", type=int, help="tasks that autojac pulls back at once; all")
    args = parser.parse_args()
    print(f"N = {args.tasks}, {args.examples} examples a task, width {args.width}")
    makers = theirs(args) if args.torchjd else ours(args)
    print(f"\n{'step':24}{'ms':>9}{'ratio':>9}{'loss':>11}{'worst':>11}")
    average = None
    for name, make in makers.items():
        try:
            step, losses = make()
        except (AttributeError, ImportError) as error:
            print(f"{name:24}  {str(error)[:70]}", flush=True)
            continue
        for _ in range(STEPS):
            step()
        reached, milliseconds = losses(), methods.median_ms(step)
        losses()  # whether they are still finite
        average = average or milliseconds
        print(
            f"{name:24}{milliseconds:>9.2f}{milliseconds / average:>8.2f}×"
            f"{reached.mean():>11.6f}{reached.max():>11.6f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
