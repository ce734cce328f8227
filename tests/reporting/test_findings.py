"""The words are honest: a method wins only where the seeds show it."""

import dataclasses

import numpy as np
import pytest

from ldro_jax import reporting
from ldro_jax.reporting import Run, figure_words
from ldro_jax.reporting.plots.interaction import last_interaction
from ldro_jax.reporting.plots.training import moving_weights


def words(made_up, *, average, new, seeds=3, other=None):
    """The headline for given worst values, by method and seed; the second task holds 0.9."""
    runs = [made_up.run("Average", s, [average[s], 0.9]) for s in range(seeds)]
    runs += [made_up.run("L-DRO", s, [new[s], 0.9]) for s in range(seeds)]
    if other:
        runs += [made_up.run("Other", s, [other[s], 0.9]) for s in range(seeds)]
    return " ".join(reporting.headline_words(made_up.results(runs)))


def test_a_clear_win(made_up):
    text = words(made_up, average=[0.5, 0.51, 0.52], new=[0.6, 0.612, 0.618])
    assert text.startswith("L-DRO has the best mean worst-task accuracy (test): 0.610 ± 0.009")
    assert "its worst task is +0.100 ± 0.005 against Average's: clearly better." in text
    assert "Its average is 0.050 higher than Average's" in text


def test_a_higher_mean_within_the_noise_is_no_win(made_up):
    text = words(made_up, average=[0.5, 0.5, 0.5], new=[0.45, 0.52, 0.6])
    assert "L-DRO has the best mean" in text
    assert "these seeds do not separate the two" in text
    assert "clearly" not in text


def test_a_loss_is_said_plainly(made_up):
    text = words(made_up, average=[0.6, 0.61, 0.62], new=[0.5, 0.51, 0.521])
    assert text.startswith("Average has the best mean worst-task accuracy")
    assert "Against Average, on the worst task – clearly worse: L-DRO." in text
    assert "better" not in text


def test_an_exact_tie_is_shared(made_up):
    text = words(made_up, average=[0.5, 0.5, 0.5], new=[0.5, 0.5, 0.5])
    assert text.startswith("Average and L-DRO share the best mean worst-task accuracy")
    assert "not separated: L-DRO" in text
    assert "clearly" not in text


def test_the_price_in_the_average_is_named(made_up):
    runs = [made_up.run("Average", s, [0.5, 0.9]) for s in range(3)]
    runs += [made_up.run("L-DRO", s, [0.6, 0.7]) for s in range(3)]
    text = " ".join(reporting.headline_words(made_up.results(runs)))
    assert "Its average is 0.050 lower than Average's (−0.050 ± 0.000): clearly worse." in text


def test_the_next_best_is_compared_too(made_up):
    text = words(made_up, average=[0.4, 0.4, 0.4], new=[0.6, 0.62, 0.64], other=[0.62, 0.6, 0.63])
    assert "Next is Other; the difference is +0.003 ± 0.052: these seeds do not separate" in text


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_are_never_enough(made_up, seeds):
    text = words(made_up, average=[0.1, 0.1], new=[0.9, 0.9], seeds=seeds)
    assert "cannot be told from chance" in text
    assert "fewer than 3 finished seeds" in text
    assert "clearly better" not in text


def test_for_losses_lower_wins(made_up):
    def run(method, seed, worst):
        entry = made_up.evaluation(1, [worst, 0.1], metric="loss", higher=False)
        return Run(method, seed, 1, evaluations=[entry])

    runs = [run("Average", s, 0.9) for s in range(3)] + [run("L-DRO", s, 0.5) for s in range(3)]
    record = dataclasses.replace(made_up.results(runs), metric="loss", higher_is_better=False)
    text = " ".join(reporting.headline_words(record))
    assert "L-DRO has the best mean worst-task loss" in text
    assert "−0.400 ± 0.000 against Average's: clearly better" in text
    assert "0.200 lower than Average's" in text


def test_a_diverged_method_never_leads(made_up):
    text = words(made_up, average=[0.5] * 3, new=[0.6, np.nan, 0.6])
    assert text.startswith("Average has the best mean")
    assert "cannot be compared: L-DRO" in text


def test_nothing_to_compare(made_up):
    alone = made_up.results([made_up.run("Average", 0, [0.5, 0.7])])
    assert "nothing to compare it with" in reporting.headline_words(alone)[0]
    none = made_up.results([Run("Average", 0, 1, stopped="x"), Run("L-DRO", 0, 1)])
    assert "No run finished" in reporting.headline_words(none)[0]
    apart = made_up.results([made_up.run("Average", 0, [0.1, 1]), made_up.run("B", 1, [0.5, 1])])
    assert "shares no finished seed with Average" in " ".join(reporting.headline_words(apart))


def test_words_on_tasks(made_up):
    runs = [made_up.run("Average", s, [0.5, 0.9]) for s in range(3)]
    runs += [made_up.run("L-DRO", s, [0.6, 0.8 + 0.2 * (s == 0)]) for s in range(3)]
    first, second = figure_words.task_words(made_up.results(runs))
    assert first == "The task most often worst is task 0: in 6 of 6 finished runs."
    assert second == (
        "L-DRO has a better mean than Average on 1 of 2 tasks (1 of them clear) and a worse one on "
        "1 (0 clear); it gains most on task 0 (+0.100); it loses most on task 1 (−0.033)."
    )


def test_words_on_the_balance_speak_of_means(made_up):
    runs = [made_up.run("A", 0, [0.5, 0.9]), made_up.run("B", 0, [0.6, 0.7])]
    runs += [made_up.run("C", 0, [0.4, 0.7])]
    text = " ".join(figure_words.balance_words(made_up.results(runs)))
    assert "No method has better means than A and B on both axes." in text
    assert "A has better means than C on both." in text
    assert "B has better means than C on both." in text


def test_words_on_progress_name_an_early_peak(made_up):
    entries = [made_up.evaluation(s, [v, 0.9]) for s, v in ((10, 0.3), (20, 0.5), (30, 0.4))]
    record = made_up.results([Run("A", 0, 30, evaluations=entries)])
    text = "The mean worst-task value was best before the end for A (0.500 at step 20, 0.400 at"
    assert figure_words.progress_words(record)[0].startswith(text)
    record = made_up.results([Run("A", 0, 20, evaluations=entries[:2])])
    assert "best at its last evaluation" in figure_words.progress_words(record)[0]


def test_words_on_weights_interaction_and_time(full):
    weights = figure_words.weight_words(full, moving_weights(full))
    assert len(weights) == 1 and "times uniform" in weights[0] and "Average" not in weights[0]
    found = last_interaction(full)
    aligned, norms = figure_words.interaction_words(full, found)
    assert "of 28 pairs have a negative cosine" in aligned
    assert norms.startswith("Gradient norms go from")
    assert "Group DRO 1.03 times" in figure_words.time_words(full)[0]


def test_problems_are_listed_by_run_and_task(made_up):
    runs = [
        Run("A", 3, 10, nonfinite_losses={"noisy": 2, "clean": 0}),
        Run("A", 4, 10, stopped="out of memory"),
        Run("A", 5, 10),
        Run("A", 6, 10, nonfinite_losses={"clean": 1}, unmeasured_interactions={"noisy": 3}),
    ]
    assert figure_words.problem_words(made_up.results(runs)) == [
        "A, seed 3 had losses that were not finite: noisy (2).",
        "A, seed 4 stopped before step 10: out of memory",
        "A, seed 6 had losses that were not finite: clean (1).",
        "A, seed 6 had interactions that could not be measured: noisy (3).",
    ]
