"""Chooses the settings of a trial: combinations of a grid, random ones, or Optuna's TPE on earlier results.

the space, the number of a trial, results of other trials -> its settings

Grid and random know all trials in advance. TPE (arXiv:2304.11127) is asked when a trial starts, in the trial's own
process: a loop in Kubeflow has as many iterations as were compiled, but the settings of each may depend on those that
ended before it.
"""

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

from posttrain.config.sweep import Range, Settings, SweepConfig
from posttrain.sweep.ranking import Candidate

NUM_RANDOM_TRIALS = 5  # trials before TPE has results to use


def settings_of(sweep: SweepConfig, trial: str, *, ended: Sequence[Candidate], running: Sequence[Settings]) -> Settings:
    """Returns the settings of a trial, by name.

    Args:
        ended: trials of this sweep that have ended; only TPE uses them.
        running: settings of trials that have not; only TPE uses them.
    """
    number = sweep.trials.index(trial)
    if sweep.sampler == "grid":
        names, values = list(sweep.choices), list(itertools.product(*sweep.choices.values()))
        return dict(zip(names, values[number], strict=True))
    if sweep.sampler == "random":
        dice = random.Random(f"{sweep.seed}/{number}")
        return {name: _random(values, dice) for name, values in sweep.space.items()}
    return _tpe(sweep, number, ended, running)


def _random(values: Range | list[Any], dice: random.Random) -> Any:
    return values.at(dice.random()) if isinstance(values, Range) else dice.choice(values)


def _tpe(sweep: SweepConfig, number: int, ended: Sequence[Candidate], running: Sequence[Settings]) -> Settings:
    """Asks optuna, with a study built from the trials so far, so that nothing but their results need be stored."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    num_random = min(NUM_RANDOM_TRIALS, math.ceil(len(sweep.trials) / 2))
    sampler = optuna.samplers.TPESampler(
        seed=sweep.seed * 1_000_003 + number, n_startup_trials=num_random, constant_liar=True
    )
    study = optuna.create_study(direction=sweep.objective.direction, sampler=sampler)
    distributions = {name: _distribution(values) for name, values in sweep.space.items()}
    state = optuna.trial.TrialState
    for candidate in ended:
        # To TPE a pruned trial without a value is worse than any trial with one: it will avoid that region.
        result = {"state": state.COMPLETE, "value": candidate.value} if candidate.qualifies else {"state": state.PRUNED}
        study.add_trial(_frozen(sweep, candidate.settings, distributions, **result))
    for settings in running:
        study.add_trial(_frozen(sweep, settings, distributions, state=state.RUNNING))
    params = study.ask(distributions).params
    return {name: _from_optuna(values, params[name]) for name, values in sweep.space.items()}


def _frozen(sweep: SweepConfig, settings: Settings, distributions: dict[str, Any], **result) -> Any:
    import optuna

    params = {name: _to_optuna(values, settings[name]) for name, values in sweep.space.items()}
    return optuna.trial.create_trial(params=params, distributions=distributions, **result)


def _distribution(values: Range | list[Any]) -> Any:
    """Returns optuna's distribution of some values; for a list of their positions, since its values may be lists."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution(range(len(values)))
    kind = IntDistribution if values.is_whole else FloatDistribution
    return kind(values.min, values.max, log=values.log)


def _to_optuna(values: Range | list[Any], value: Any) -> Any:
    return value if isinstance(values, Range) else values.index(value)


def _from_optuna(values: Range | list[Any], param: Any) -> Any:
    return param if isinstance(values, Range) else values[param]
