"""Usual hyperparameters of every method that needs some."""


def hyperparameters(name, num_tasks):
    """Keyword arguments that make the method for so many tasks."""
    numbers = tuple(float(i + 1) for i in range(num_tasks))
    identity = [[float(i == j) for j in range(num_tasks)] for i in range(num_tasks)]
    given = {
        "baselined_dro": {"reference_losses": numbers, "weight_lr": 0.1},
        "cvar": {"share": 0.5},
        "doge": {"rate": 0.01},
        "doremi": {"reference_losses": numbers},
        "dwa": {"window": 1},
        "erm": {"sizes": numbers},
        "famo": {"learning_rate": 0.1},
        "go4align": {"num_groups": 2, "risk_lr": 1e-4},
        "grape": {"weight_lr": 0.1, "adversary_lr": 0.1},
        "interpolated": {"alpha": 0.5},
        "lookahead_exact": {"lookahead_lr": 0.1},
        "lookahead_online": {"lookahead_lr": 0.5, "weight_lr": 0.4},
        "pike": {"weight_lr": 0.1, "noise_penalty": 0.1},
        "q_ffl": {"q": 1.0},
        "regularized_dro": {"temperature": 0.3},
        "scalarization": {"draw": 1},
        "skill_it": {"weight_lr": 0.1, "skills": identity},
        "smooth_lookahead": {"lookahead_lr": 0.1, "temperature": 0.1},
        "static_mixing": {"sizes": numbers, "exponent": 0.3},
        "stch": {"smoothing": 0.1},
        "term": {"tilt": 1.0},
        "unimax": {"sizes": numbers},
    }
    rated = ("afl", "aioli", "gradnorm", "group_dro", "imtl_l", "uncertainty")
    return given.get(name, {"weight_lr": 0.1} if name in rated else {})
