"""What each weighting costs, given the interaction matrix: weights for 4 to 64 tasks.

    python benchmarks/methods.py
    python benchmarks/methods.py --torchjd

Milliseconds of one call of the compiled weighting on one matrix, the median of many. With
`--torchjd`, the same matrices with the weightings of TorchJD, in an environment where that is
installed (jax need not be).
"""

import argparse
import time

import numpy as np

SIZES = (4, 20, 40, 64)
ROUNDS = 200


def gram(num_tasks):
    """Of random gradients with a direction in common, float32."""
    rng = np.random.default_rng(num_tasks)
    gradients = rng.normal(size=(num_tasks, 3 * num_tasks)) + 0.3 * rng.normal(size=3 * num_tasks)
    return (gradients @ gradients.T / num_tasks).astype(np.float32)


def median_ms(call):
    """The median time of a call that has been warmed up, in milliseconds."""
    for _ in range(3):
        call()
    times = []
    began = time.perf_counter()
    while len(times) < ROUNDS and time.perf_counter() - began < 5:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def ours():
    """Every method of this library."""
    import jax
    import jax.numpy as jnp

    from ldro_jax import weighting

    def make(name, num_tasks):
        method = weighting.create(name, weighting.usual(name, num_tasks))
        matrix = jnp.asarray(gram(num_tasks))
        losses = jnp.asarray(np.random.default_rng(1).uniform(1, 2, num_tasks), jnp.float32)
        statistics = weighting.Statistics(jnp.int32(0), losses, matrix, noise=jnp.diagonal(matrix))
        state = method.init(num_tasks, jnp.float32)
        update = jax.jit(method.update)
        return lambda: jax.block_until_ready(update(statistics, state))

    return {name: (lambda n, name=name: make(name, n)) for name in sorted(weighting.METHODS)}


def theirs():
    """TorchJD's weightings of a Gram matrix."""
    import torch
    from torchjd import aggregation

    names = ("AlignedMTL", "CAGrad", "DualProj", "FairGrad", "GradVac", "IMTLG", "Krum", "MGDA")
    names += ("PCGrad", "SDMGrad", "UPGrad")
    arguments = {"CAGrad": {"c": 0.5}, "FairGrad": {"alpha": 2.0}, "Krum": {"n_byzantine": 1}}

    def make(name, num_tasks):
        matrix = torch.tensor(gram(num_tasks))
        if name == "NashMTL":  # of a Jacobian: one with this Gram matrix
            found = aggregation.NashMTL(n_tasks=num_tasks).weighting
            matrix = torch.linalg.cholesky(matrix)
        else:
            found = getattr(aggregation, f"{name}Weighting")(**arguments.get(name, {}))
        return lambda: found(matrix)

    return {name: (lambda n, name=name: make(name, n)) for name in (*names, "NashMTL")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torchjd", action="store_true", help="time TorchJD's weightings")
    methods = theirs() if parser.parse_args().torchjd else ours()
    print(f"{'ms':20}" + "".join(f"N = {n:<8}" for n in SIZES))
    for name, make in methods.items():
        cells = []
        for num_tasks in SIZES:
            try:
                cells.append(f"{median_ms(make(num_tasks)):<12.3f}")
            except (RuntimeError, TypeError, ValueError) as error:
                cells.append(f"{type(error).__name__[:11]:<12}")
        print(f"{name:20}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
