"""Configuration of all tests: strict numerics, 8 CPU devices, and XLA flags that are known good."""

import atexit
import collections
import ctypes
import fnmatch
import functools
import gc
import importlib.util
import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

import jax
import pytest
from helpers import pictures
from jax._src import compiler

from ldro_jax.runtime import xla_flags

# All of this has to happen before the first test makes an array and JAX's backend starts.
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()
xla_flags.set_cpu_defaults()

# A shell starts what it puts into the background with SIGINT ignored, and so would be all below.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Programs that several tests, or the processes that they start, compile alike are compiled once. A
# directory for each worker: JAX writes files there that are seen before they are whole.
_programs = tempfile.mkdtemp(prefix="ldro-jax-tests-")
atexit.register(shutil.rmtree, _programs, ignore_errors=True)
for _option, _value in {
    "jax_compilation_cache_dir": _programs,
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}.items():
    jax.config.update(_option, _value)
    os.environ[_option.upper()] = str(_value)

if not hasattr(jax, "enable_x64"):  # before jax 0.8
    from jax import experimental

    jax.enable_x64 = experimental.enable_x64
jax.config.update("jax_platforms", "cpu")
# Nobody looks into what is lowered for where it comes from.
jax.config.update("jax_traceback_in_locations_limit", 0)
# A silent promotion or broadcast is how a [N] vector becomes a wrong [N, N] matrix.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# What -m smoke runs: the mathematics, data, records and tables, and one experiment to its end.
_SMOKE = (
    "experiments/test_compare.py::test_a_call_from_python_looks_after_its_directory",
    "problems/test_arrays.py",
    "records/test_results.py",
    "reporting/test_tables.py",
    "runtime/test_checks.py",
    "training/test_schedule.py",
    "weighting/test_methods.py",
)


# Their float64 is heavy: the battery and the oracles of each method have both types by default.
_FLOAT32 = (
    "interaction/test_geometry.py",
    "interaction/test_layerwise.py",
    "interaction/test_split.py::test_the_diagonal",
    "interaction/test_split.py::test_the_halves_give_the_training_gradient_too",
    "solvers/test_random_games.py",
    "solvers/test_smooth_games.py",
    "solvers/test_solvers.py::test_twins_are_treated_alike_and_permutations_followed",
    "transform/test_diagnostics.py",
    "weighting/test_battery.py::test_reference_values",
    "weighting/test_known_games.py",
    "weighting/test_known_gradients.py",
    "weighting/test_known_losses.py",
    "weighting/test_lengths.py",
    "weighting/test_shifted_losses.py",
    "weighting/test_twins.py",
)

# One of each kind: with a solver, with losses after the step, and with neither.
_FEW = ("cagrad", "famo", "lookahead_online")
# Methods that compute weights from a Gram matrix, one of those that solve the same problem.
_OF_GRAM = ("aligned_mtl", "cagrad", "krum", "nash_mtl", "pcgrad", "upgrad")
# That every method can be computed in float64 shows where it is traced.
_FLOAT64_OF_FEW = ("*-float32", *(f"{kind}-float64" for kind in _FEW))
# The solvers are compiled for each size and type. One without freedom, a few tasks, and many.
_SIZES = ("*-1-float32*", "*-5-float32*", "*-64-float32*", "*-5-float64*")
# Each strategy, each model by two, and both types.
_STRATEGIES = (
    *("float32-mlp-*", "float32-*-columns", "float32-*-layerwise"),
    *("float32-tied-vmap", "float64-mlp-layerwise", "float64-mlp-scan"),
)
# Those that share no code: all gradients at once, one after the other, in tiles, by layers.
_WAYS = ("columns", "layerwise", "scan", "tiled 3")
# Of these tests, by default, the named cases alone, each of which goes another way; the others,
# which differ in size, type or method, are heavy. A name may be a pattern of many.
_CASES = {
    "training/test_products.py::test_training_is_the_same_on_one_and_on_eight_devices": (
        *("labels, statistics, dropout", "rows of one task"),
    ),
    "training/test_products.py::test_they_train_where_the_data_is_on_the_device": ("tables",),
    "experiments/test_compare.py::test_a_full_disk_leaves_earlier_work": ("meshed",),
    "experiments/test_compare.py::test_a_run_that_never_recovers_does_not_stop_the_others": (
        "stacked-best",
    ),
    "experiments/test_compare.py::test_an_experiment_that_is_asked_to_stop_begins_no_other_run": (
        "meshed-always",
    ),
    "experiments/test_compare.py::test_ready_is_called_once_before_anything_is_written": (
        "stacked",
    ),
    "experiments/test_groups.py::test_an_experiment_runs_to_the_report": ("digits_groups.gin",),
    "experiments/test_worst_groups.py::test_an_experiment_runs_to_the_report": ("toy*few",),
    "experiments/test_compare.py::test_methods_get_the_sizes_of_the_tasks": ("stacked",),
    "experiments/test_patience.py::test_a_run_ends_where_a_loop_by_hand_does": ("stacked",),
    "faults/test_api_inputs.py::test_64_bits_are_taken_as_they_are_where_jax_holds_them": (
        "int64",
    ),
    "faults/test_changes.py::test_what_changes_no_number_is_taken": ("a seed-interrupted",),
    "faults/test_changes.py::test_what_would_change_the_numbers_is_refused": (
        *("rate-interrupted", "loss-finished", "setting-finished", "fewer steps-interrupted"),
    ),
    "games/test_games.py::test_a_duplicated_task_shares_its_twins_weight_equally": (
        *("gaussian-float32", "lookahead_1-float32", "lookahead_10-float32", "skew-float32"),
    ),
    "games/test_games.py::test_affine_changes_of_the_payoffs_change_nothing": ("*-float32",),
    "games/test_games.py::test_small_games_with_known_solutions": ("float32",),
    "games/test_games.py::test_the_weights_are_uniform_where_the_game_leaves_the_choice_open": (
        "*-float32",
    ),
    "games/test_games.py::test_value_and_entropy_agree_with_the_oracle": (
        "1-0-float32",
        "5-0-float32",
    ),
    "games/test_games.py::test_weights_are_on_the_simplex_and_the_certificate_is_honest": (
        "5-float64",
        "20-float32",
    ),
    "games/test_games.py::test_entropy_prefers_the_even_split_of_an_optimal_edge": ("float32",),
    "games/test_games.py::test_other_types_are_computed_in_float32": ("bfloat16",),
    "games/test_games.py::test_permuting_tasks_permutes_the_weights": ("float32",),
    "games/test_games.py::test_rectangular_games_agree_with_the_oracle": ("shape0",),
    "interaction/test_features.py::test_the_trainer_takes_what_a_linen_model_names": (
        *("None-None", "None-4", "Layout(data=4*-None"),
    ),
    "interaction/test_geometry.py::test_every_form_takes_a_preconditioner": (
        "layout-1",
        "stacked-1",
        "tasks-2",
    ),
    "interaction/test_products.py::test_a_product_is_that_of_the_gradients_of_both_halves": (
        "False-True",
        "True-False",
    ),
    "interaction/test_strategies.py::test_bfloat16_parameters": ("columns",),
    "interaction/test_strategies.py::test_equals_a_loop_of_gradients": _STRATEGIES,
    "interaction/test_strategies.py::test_heads_do_not_interact": ("columns", "layerwise"),
    "interaction/test_strategies.py::test_sharded": (
        "columns-True",
        "layerwise-False",
        "vmap-False",
    ),
    "models/test_decoder.py::test_a_new_model_knows_nothing": ("True",),
    "models/test_decoder.py::test_gradients_of_all_tasks_at_once_are_those_of_each": ("True-3",),
    "models/test_decoder.py::test_scanning_rematerialising_and_chunks_change_nothing": (
        "{'scan_layers': True, 'remat': True, 'logits_chunk': 3}",
    ),
    "models/test_decoder.py::test_the_losses_are_the_textbooks": ("learned-8", "rotary-3"),
    "models/test_mlp.py::test_mlp_is_dense_layers_with_relu_between": ("features2",),
    "problems/test_arrays.py::"
    "test_every_task_is_measured_on_its_own_rows_by_functions_of_all_of_them": (
        "functions",
        "linen",
    ),
    "problems/test_iterators.py::test_a_run_that_was_interrupted_ends_the_same": ("rows",),
    "problems/test_iterators.py::test_the_rows_after_a_saved_place_are_the_same": (
        *("function", "list", "state", "bytes", "Grain"),
    ),
    "problems/test_objectives.py::test_fixed_weights_take_the_papers_step": (
        *("numbers-1", "tokens-2"),
    ),
    "problems/test_objectives.py::test_perturbed_losses_are_those_of_the_worst_draws": (
        "0.4-float32",
    ),
    "problems/test_objectives.py::test_runs_end_with_a_report_of_the_groups": ("reconstruction",),
    "problems/test_objectives.py::test_statistics_move_once_a_step": ("objective1-groups",),
    "problems/test_objectives.py::test_the_worst_share_is_that_of_a_linear_programme": (
        *("0.01-float32", "0.3-float32", "0.3-float64"),
    ),
    "problems/test_public_data.py::test_linear_models_are_scikit_learns": ("yeast",),
    "records/test_output_dir.py::test_a_second_process_hears_who_works_there": ("True",),
    **{
        f"solvers/test_solvers.py::test_{name}": _SIZES
        for name in (
            "above_is_a_nonnegative_least_squares_problem",
            "balance_solves_its_equation",
            "min_norm_is_the_shortest_combination",
            "no_update_within_the_radius_helps_the_worst_task_more",
            "on_simplex_satisfies_the_conditions_of_optimality",
        )
    },
    "runtime/test_equations.py::test_scanned_layers_are_measured_in_any_form": ("options0-*",),
    "solvers/test_smooth_games.py::test_each_player_answers_the_other": (
        *("float32-1-*", "float32-5-*", "float32-64-*"),
    ),
    "records/test_kept.py::test_a_damaged_checkpoint_is_said": ("alone", "mesh"),
    "records/test_kept.py::test_parameters_are_those_of_the_run": ("alone", "mesh"),
    "records/test_kept.py::test_what_is_not_kept_is_said": ("alone", "mesh"),
    "reporting/test_figures.py::test_no_name_crosses_a_point_a_bar_or_another_name": (
        "forty tasks-*",
        "one task-average_vs_worst",
        "sweep-pareto_frontiers",
    ),
    "runtime/test_leaves.py::test_trees_of_the_same_leaves_may_mix": (
        "dict-FrozenDict",
        "nnx.State-dict",
    ),
    "tasks/test_streaming.py::test_a_resumed_stream_goes_on_as_if_it_had_not_stopped": ("151",),
    "tasks/test_text.py::test_damaged_tokens_are_made_again": ("flip",),
    "test_meshes.py::test_the_digits_of_one_device": ("AxisType.Explicit-auto-examples-2-False",),
    "test_meshes.py::test_other_forms_on_an_explicit_mesh": ("layout",),
    "training/test_best.py::"
    "test_a_checkpoint_comes_with_every_improvement_and_else_at_its_interval": ("images",),
    "training/test_best.py::test_losses_that_stay_nan_stop_a_run_and_what_was_good_is_kept": (
        "text",
    ),
    "training/test_best.py::test_the_test_is_of_the_best_checkpoint": ("images",),
    "training/test_best.py::test_without_one_finite_value_the_test_is_of_the_last_step": (
        "stacked",
    ),
    "training/test_engine.py::test_all_methods_see_the_same_batches": ("meshed",),
    "training/test_engine.py::test_a_problem_from_outside_is_trained": ("meshed",),
    "training/test_engine.py::test_all_methods_start_from_the_same_parameters_and_seeds_differ": (
        "stacked",
    ),
    "training/test_engine.py::test_the_smallest_batches_can_be_taken": (
        "stacked-{'size': 3}",
        "meshed-{'size': 1, 'sampler': 'uniform'}",
    ),
    "training/test_geometry.py::test_the_interaction_is_that_of_the_geometry": ("2-meshed",),
    "training/test_geometry.py::test_with_its_own_decay": ("stacked",),
    "training/test_groups.py::test_rows_of_one_task_each_are_those_of_the_whole_problem": ("map",),
    "training/test_labels.py::test_a_penalty_is_a_loss_of_no_task": ("stacked",),
    "training/test_labels.py::test_an_interrupted_run_ends_with_the_same_bits": (
        "problem-stacked",
    ),
    "training/test_labels.py::test_microbatches_move_the_statistics_once_a_step": ("one",),
    "training/test_labels.py::test_rows_of_one_task_each_train_models_with_statistics": (
        "stacked",
    ),
    "training/test_labels.py::test_runs_begin_with_the_parameters_that_are_given": ("stacked",),
    "training/test_labels.py::test_tables_that_differ_are_trained_together": ("stacked",),
    "training/test_labels.py::test_training_is_a_loop_written_by_hand": (
        "every step-4 x 2",
        "every tenth-stacked",
    ),
    "training/test_loop.py::test_a_damaged_checkpoint_costs_time_but_changes_nothing": (
        "meshed-drawn",
    ),
    "training/test_loop.py::test_a_nan_loss_in_one_batch_leaves_the_weights_and_is_counted": (
        "meshed",
    ),
    "training/test_loop.py::test_a_run_that_was_killed_after_its_last_step_only_reports": (
        "meshed",
    ),
    "training/test_loop.py::test_a_stretch_is_taken_in_parts_and_broken_off_without_a_difference": (
        "15",
    ),
    "training/test_loop.py::test_a_task_that_never_recovers_stops_the_run_and_is_named": (
        "stacked",
    ),
    "training/test_loop.py::test_checkpoints_come_at_the_next_evaluation": ("stacked",),
    "training/test_loop.py::test_the_progress_names_the_worst_task": ("meshed",),
    "training/test_loop.py::test_the_test_can_be_left_to_the_end": ("meshed",),
    "training/test_loop.py::test_a_run_learns_and_repeats_itself": ("stacked-L-DRO",),
    "training/test_loop.py::test_an_interrupted_run_ends_as_if_nothing_had_happened": (
        *("stacked-L-DRO", "meshed-L-DRO"),
    ),
    "training/test_loop.py::test_interactions_that_can_not_be_measured_are_counted_and_named": (
        "stacked",
    ),
    "training/test_loop.py::test_other_data_is_refused_and_nothing_is_deleted": ("stacked",),
    "training/test_loop.py::test_a_run_that_is_asked_to_stop_while_it_evaluates_stops_after_that": (
        "*-validation-1-10",
        "stacked-test-1-40",
    ),
    "training/test_meshed.py::test_every_layout_trains_the_same": ("data-images, uneven-options8",),
    "training/test_meshed.py::test_evaluation_does_not_depend_on_the_layout": (
        "validation-bigram",
    ),
    "training/test_meshed.py::test_parameters_and_optimizer_are_split_as_the_rules_say": (
        "data and model",
    ),
    "training/test_meshed.py::"
    "test_the_interaction_takes_little_memory_beside_a_step_on_the_average_loss": (
        "data-bigram-every step",
    ),
    "training/test_meshed_runs.py::test_a_run_that_is_asked_to_stop_saves_first": (
        "Group DRO, drawn",
    ),
    "training/test_meshed_runs.py::test_looking_at_a_run_changes_nothing": ("L-DRO",),
    "training/test_meshed_runs.py::test_other_text_is_refused_and_nothing_is_deleted": (
        *("number", "vocabulary"),
    ),
    "training/test_meshed_runs.py::test_a_killed_run_ends_as_if_nothing_had_happened": ("L-DRO",),
    "training/test_meshed_runs.py::test_a_run_learns_and_its_record_is_what_happened": ("L-DRO",),
    "training/test_method.py::test_rates_take_the_place_of_the_hyperparameters": ("3",),
    "training/test_objective.py::test_balanced_batches_train_on_the_weighted_loss": ("meshed-64",),
    "training/test_objective.py::test_rows_drawn_by_probabilities_count_by_the_weights": (
        "4-(5, 7, 12)",
        "256-(5, 7, 12)",
    ),
    "training/test_objective.py::test_tasks_that_take_turns_count_by_their_weights": ("meshed-64",),
    "training/test_objective.py::test_plain_random_batches_train_on_the_weighted_loss": (
        "(5, 7, 12)-meshed-4",
    ),
    "training/test_objective.py::test_a_task_without_rows_adds_no_gradient_and_is_not_present": (
        "meshed",
    ),
    "training/test_objective.py::test_however_a_step_is_taken_it_trains_on_the_weighted_loss": (
        "meshed-balanced-in parts",
        "meshed-uniform-*",
    ),
    "training/test_reference.py::test_the_positive_part_is_taken_row_by_row": ("1-stacked",),
    "training/test_sources.py::test_a_damaged_state_of_a_source_is_known_by_its_checksum": (
        *("a digit", "gone"),
    ),
    "training/test_sources.py::test_rows_that_change_are_refused_and_nothing_saved_is_lost": (
        *("masked", "other keys", "too few"),
    ),
    "training/test_stacked.py::test_a_run_that_ended_within_a_block_of_a_longer_schedule_goes_on": (
        "12",
    ),
    "training/test_stacked.py::test_balanced_steps_are_a_plain_loop": ("L-DRO, every third",),
    "training/test_stacked.py::test_fewer_rows_can_be_asked_for_and_halved": ("1-meshed",),
    "training/test_stacked.py::test_the_interaction_is_measured_on_more_rows_than_a_batch_has": (
        *("every third",),
    ),
    "training/test_stacked.py::test_runs_together_equal_runs_one_at_a_time": ("vmap",),
    "training/test_step.py::test_balanced_steps_are_a_plain_loop": (
        *("images", "L-DRO, scanned layers"),
    ),
    "training/test_step.py::test_uneven_batches_are_a_plain_loop": ("bigram-in every step",),
    "training/test_step.py::test_gradients_that_serve_for_both_are_the_same": ("vmap",),
    "training/test_step.py::test_steps_on_random_rows_with_absent_tasks_are_a_plain_loop": (
        "L-DRO",
    ),
    "training/test_step.py::test_the_interaction_is_measured_on_the_first_rows": ("2-2", "None-4"),
    "training/test_step.py::test_the_parts_of_a_batch_make_no_difference": ("2",),
    "transform/test_averaging.py::test_the_trainer_evaluates_and_keeps_the_mean": (
        "StackedEngine",
    ),
    "transform/test_dtypes.py::test_the_fused_step_does_not_round_the_weights": ("bfloat16",),
    "transform/test_dtypes.py::test_half_precision_losses_of_full_precision_gradients": (
        "float32",
    ),
    "transform/test_failures.py::test_a_loss_below_zero_is_counted_and_moves_no_weight": (
        "gradnorm",
        "q_ffl",
    ),
    "transform/test_failures.py::test_a_step_with_a_bad_loss_changes_nothing": (
        "1-tasks",
        "2-stacked",
    ),
    "transform/test_failures.py::test_an_interval_may_be_any_integer": ("2",),
    "transform/test_optax_wrappers.py::test_conditional_wrappers_take_a_tree_of_zeros": (
        *("False-conditionally_mask", "True-conditionally_transform"),
    ),
    "transform/test_products.py::"
    "test_on_the_same_rows_training_goes_the_same_way_as_by_the_matrix": (
        "forward",
        "layout",
    ),
    "transform/test_state.py::test_compiles_once_and_keeps_its_types": (
        "float32-tasks-1",
        "float32-stacked-2",
        "float64-tasks-2",
    ),
    "transform/test_state.py::test_one_and_eight_devices_agree": ("3-AxisType.Explicit",),
    "transform/test_state.py::test_bfloat16_parameters": ("stacked",),
    "transform/test_state.py::test_outside_of_a_jit_only_the_first_steps_compile": (
        "options0",
        "options1",
    ),
    "transform/test_statistics.py::test_a_step_is_the_same_with_and_without_something_besides": (
        "layout",
    ),
    "transform/test_unmeasured.py::test_a_norm_that_overflows": (
        "float32-tasks-1",
        "float32-stacked-2",
        "float64-tasks-2",
    ),
    "transform/test_unmeasured.py::test_a_norm_that_underflows": ("float32-*",),
    "transform/test_unmeasured.py::test_an_absent_task_is_not_counted": ("float32-*",),
    "transform/test_weighted.py::test_any_strategy_does": ("layerwise", "scan"),
    "transform/test_weighted.py::test_an_absent_task_keeps_its_statistics_and_adds_nothing": (
        "layout-1",
        "tasks-2",
    ),
    "transform/test_weighted.py::test_is_algorithm_3": (
        "1-True-True",
        "1-False-False",
        "7-False-True",
    ),
    "transform/test_weighted.py::test_the_four_forms_agree": ("lookahead_online",),
    "transform/test_weighted.py::test_the_fused_step_is_the_plain_one": ("True",),
    "transform/test_trainable.py::test_trains_as_if_they_were_constants": (
        "stacked-vmap-1-True",
        "tasks-split-2-False",
    ),
    "weighting/test_battery.py::test_a_step_that_donates_its_state": _FEW,
    "weighting/test_battery.py::test_follows_a_permutation_of_the_tasks": _FLOAT64_OF_FEW,
    "weighting/test_battery.py::test_jit_equals_eager_and_compiles_once": _FEW,
    # Games under vmap are those of tests/weighting/test_known_games.py.
    "weighting/test_battery.py::test_vmaps": _FEW,
    "weighting/test_battery.py::test_weights_are_finite_and_sum_to_what_they_should": (
        _FLOAT64_OF_FEW
    ),
    "weighting/test_battery.py::test_works_sharded_over_devices": _FEW,
    "weighting/test_battery.py::test_any_scale_of_losses_and_gradients_is_fine": (
        "*-0.0",
        "*-1000000.0",
    ),
    "weighting/test_grape_pike_go4align.py::test_groups_are_the_best_of_all": (
        *("float32-*", "float64-2"),
    ),
    "weighting/test_grape_pike_go4align.py::test_go4align_is_the_paper_s": ("float32-*",),
    "weighting/test_known_gradients.py::test_a_task_that_comes_late_takes_part_at_once": _OF_GRAM,
    "weighting/test_known_gradients.py::"
    "test_the_known_tasks_have_the_weights_of_a_problem_without_the_others": (
        tuple(f"{name}-*" for name in _OF_GRAM)
    ),
    "weighting/test_known_losses.py::"
    "test_the_known_tasks_have_the_weights_of_a_problem_without_the_others": ("*-unknown1",),
    "weighting/test_lengths.py::test_float32_gives_the_update_of_float64": _OF_GRAM,
    "weighting/test_methods.py::"
    "test_lookahead_online_answers_to_the_worst_of_its_expected_losses": (
        "False-True",
        "True-False",
    ),
    "weighting/test_products.py::test_weights_are_finite_from_the_first_step": (
        "True-*",
        "False-lookahead_online-*",
    ),
    "weighting/test_registry.py::test_every_door_has_the_same_default": ("lookahead_online",),
}


def _is_named(case, names):
    return any(fnmatch.fnmatchcase(case, name) for name in names)


def _is_heavy(item):
    test, _, case = item.nodeid.removeprefix("tests/").partition("[")
    if "float64" in case and test.startswith(_FLOAT32):
        return True
    return test in _CASES and not _is_named(case[:-1], _CASES[test])


# Files of few tests that take long, which otherwise one process would still be at when the others
# have nothing left to do.
_FIRST = (
    *("test_examples.py", "faults/", "experiments/", "test_meshes.py", "test_main.py"),
    "test_commands.py",
)


def pytest_ignore_collect(collection_path, config):
    """With -m smoke the files without such a test, whose imports take longer than all of these."""
    if config.option.markexpr == "smoke" and collection_path.suffix == ".py":
        name = collection_path.relative_to(pathlib.Path(__file__).parent).as_posix()
        if name not in {test.partition("::")[0] for test in _SMOKE}:
            return True
    return None


def pytest_collection_modifyitems(config, items):
    """Marks what is quick and goes through most of the library, and what takes long."""
    if config.args_source is config.ArgsSource.TESTPATHS and config.option.markexpr != "smoke":
        cases = collections.defaultdict(list)
        for item in items:
            test, _, case = item.nodeid.removeprefix("tests/").partition("[")
            cases[test].append(case[:-1])
        named = [(test, name) for test, names in _CASES.items() for name in names]
        lost = [pair for pair in named if not fnmatch.filter(cases[pair[0]], pair[1])]
        if lost:
            raise pytest.UsageError(f"tests/conftest.py names cases that aren't there: {lost}")
    for item in items:
        if _is_heavy(item):
            item.add_marker(pytest.mark.heavy)
        heavy = item.get_closest_marker("heavy")
        if not heavy and any(f"tests/{name}" in item.nodeid for name in _SMOKE):
            item.add_marker(pytest.mark.smoke)
    items.sort(key=lambda item: not item.nodeid.removeprefix("tests/").startswith(_FIRST))


# A test process holds millions of objects, and looking through them all again and again takes long.
gc.set_threshold(200_000, 50, 100)


def pytest_collection_finish():
    """What is imported by now stays to the end, so that no collection need look through it."""
    gc.collect()
    gc.freeze()


# Where rounding is looked at, or what XLA gets wrong: with all of its optimisations. The second
# where heavy tests are run.
_OPTIMISED = ("interaction/test_strategies.py", "test_xla_flags.py")
_OPTIMISED_WITH_HEAVY = ("games/", "interaction/", "models/", "solvers/")
_OPTIONS = (
    # Compiling takes about 60 % longer with MLIR.
    ("xla_cpu_use_fusion_emitters", False),
    # And half as long again in many pieces, each of which has a cost of its own.
    ("xla_cpu_parallel_codegen_split_count", 1),
)


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly(request):
    """Compiling is most of what tests do, and LLVM's optimisations and MLIR most of compiling."""
    quick = request.config.option.markexpr in ("not heavy", "smoke")
    names = _OPTIMISED if quick else _OPTIMISED + _OPTIMISED_WITH_HEAVY
    if any(name in request.node.nodeid for name in names):
        yield
        return
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        _compile_with(patch, [option for option in _OPTIONS if _is_known(*option)])
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def _is_known(name, value):
    """Whether this jaxlib has an option, as releases before 0.12 have emitters besides MLIR's."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return hasattr(compiler, "get_compile_options")


def _compile_with(patch, options):
    # In XLA_FLAGS they would hold for all tests.
    original = compiler.get_compile_options

    def get_compile_options(*args, **more):
        found = original(*args, **more)
        found.env_option_overrides += options
        return found

    patch.setattr(compiler, "get_compile_options", get_compile_options)


# To look at them takes some hundredths of a second.
_TESTS_BETWEEN_LOOKS = 20
_MOST_MAPS, _MOST_BYTES, _GROWTH = 40_000, 1.5e9, 2e8
_looks = itertools.count()
_kept_bytes = 0


@pytest.fixture(autouse=True)
def _signals_stay_as_they_are():
    """A handler that one test leaves behind would end the process in another."""
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.fixture(autouse=True)
def _free_programs():
    """A process may hold 65,530 pieces of mapped memory on Linux, and programs are such pieces."""
    global _kept_bytes
    yield
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists():
        return
    is_full = _resident_bytes() > max(_MOST_BYTES, _kept_bytes + _GROWTH)
    if not is_full and next(_looks) % _TESTS_BETWEEN_LOOKS == 0:
        is_full = maps.read_bytes().count(b"\n") > _MOST_MAPS
    if is_full:
        jax.clear_caches()
        gc.collect()
        # Otherwise the C library keeps most of it.
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)
        _kept_bytes = _resident_bytes()


def _resident_bytes():
    pages = pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """The test runs in float32, and once more in float64 with JAX's x64 mode."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


# Where a picture is looked at, or one experiment runs as users run it.
_PAINTED = ("experiments/test_cifar100_experiments.py", "reporting/", "t5x/", "test_main.py")


@pytest.fixture(scope="module", autouse=True)
def _paint_little(request):
    """Most experiments here end with a report, whose pictures nobody looks at."""
    name = request.node.nodeid.removeprefix("tests/")
    if name.startswith(_PAINTED) or not importlib.util.find_spec("matplotlib"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        pictures.leave_out(patch)
        yield


@pytest.fixture
def unpainted(monkeypatch):
    """Figures are drawn, but none is made a picture, which takes longest in a report."""
    pytest.importorskip("matplotlib")
    pictures.leave_out(monkeypatch)


@pytest.fixture
def run_python():
    """Runs a program in a process of its own, with other environment variables, and returns stdout.

    For what depends on XLA's flags, which a process reads once. ``None`` removes a variable.
    """

    def run(program, **environment):
        path = os.pathsep.join(entry for entry in sys.path if entry)
        variables = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path} | environment
        variables = {name: value for name, value in variables.items() if value is not None}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=variables,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
