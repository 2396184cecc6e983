"""The commands of `experiment`: dose-response, search, adaptive, lengths, seeds, left-out, scores."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from safety_neurons.cli.app import (
    ConfigArgument,
    Count,
    RunFolderArgument,
    SettingsArgument,
    group,
    perform,
    print_results,
    shows,
)
from safety_neurons.cli.console import print_line, print_tables

experiment = group("experiment", "Experiments with the neurons of a run, and with all neuron scores.")

PairArgument = Annotated[
    str | None, Parameter(help="A HARMFUL:BENIGN pair of prompt sets to use instead of the run's test split.")
]
GENERAL = ("data_dir", "seed", "device", "evaluate.prompts")


@experiment.command(**shows(*GENERAL, "calibrate.prompt_positions", "calibrate.generated_tokens"))
def dose_response(
    run_dir: RunFolderArgument,
    *,
    alphas: Annotated[str, Parameter(allow_leading_hyphen=True)],
    on: PairArgument = None,
    config: ConfigArgument = None,
    settings: SettingsArgument = None,
) -> None:
    """Refusals, broken answers and KL divergence over alpha, the strength of calibration.

    The found neurons are compared with random ones of the same number, at the same alpha and at the same dose.

    For example:

        safety-neurons experiment dose-response runs/demo --alphas -6:6:2
        safety-neurons experiment dose-response runs/demo --alphas -4,0,4 --on jailbreakbench:alpaca

    Parameters
    ----------
    alphas
        LOW:HIGH, LOW:HIGH:STEP or a list; negative leads toward rejection, positive toward conformity.
    """
    from safety_neurons.experiments import dose_response as module

    values = module.parse_alphas(alphas)
    results = perform(module.dose_response, run_dir, values, settings=settings, config=config, on=on)
    print_results(results, run_dir, "dose_response")


@experiment.command(**shows(*GENERAL, "find.score"))
def search(
    run_dir: RunFolderArgument,
    *,
    trials: Count = 40,
    on: list[str] | None = None,
    target: float = 0.97,
    max_broken: float = 0.03,
    max_kl: float = 1.0,
    max_percent: float = 0.5,
    max_alpha: float = 6.0,
    config: ConfigArgument = None,
    settings: SettingsArgument = None,
) -> None:
    """Find the smallest set of neurons and the smallest alpha that move behavior, in each direction.

    They are chosen on the run's validation prompts and tested on its test prompts and on other sets, next to random
    neurons. Neurons are selected as the run's settings say (find.score, find.scope, find.selection); set size, alpha,
    prompt positions and generated tokens are searched.

    For example:

        safety-neurons experiment search runs/demo
        safety-neurons experiment search runs/demo --trials 20 --on jailbreakbench:alpaca xstest-unsafe:xstest-safe

    Parameters
    ----------
    trials
        Number of combinations to try in each direction.
    on
        Further HARMFUL:BENIGN pairs of prompt sets to test on.
    target
        Fraction of the prompts that should be answered, or refused.
    max_broken
        Maximum fraction of broken answers.
    max_kl
        Maximum KL divergence on prompts of the other kind, in nats per token.
    max_percent
        Maximum size of the set, in percent of the model's neurons.
    max_alpha
        Maximum alpha.
    """
    from safety_neurons.experiments.smallest_intervention import Limits
    from safety_neurons.experiments.smallest_intervention import search as find_smallest

    limits = Limits(target, max_broken, max_kl, max_percent, max_alpha)
    results = perform(
        find_smallest, run_dir, settings=settings, config=config, trials=trials, limits=limits, on=on or ()
    )
    print_results(results, run_dir, "search")


@experiment.command(**shows(*GENERAL, "calibrate.alpha_conformity"))
def adaptive(
    run_dir: RunFolderArgument,
    *,
    on: PairArgument = None,
    config: ConfigArgument = None,
    settings: SettingsArgument = None,
) -> None:
    """Attack a run's tuned model with full knowledge of the method: find its neurons again, calibrate to conformity.

    Tunes the run first if necessary. The same attack on the base model is measured for comparison.

    For example:

        safety-neurons experiment adaptive runs/demo
        safety-neurons experiment adaptive runs/demo --on jailbreakbench:alpaca --data-dir my-copies
    """
    from safety_neurons.experiments.adaptive import adaptive as attack_tuned

    results = perform(attack_tuned, run_dir, settings=settings, config=config, on=on)
    print_results(results, run_dir, "adaptive")


@experiment.command(**shows(*GENERAL, "evaluate"))
def lengths(
    run_dir: RunFolderArgument,
    *,
    tokens: list[int] | None = None,
    requests: Count = 20,
    config: ConfigArgument = None,
    settings: SettingsArgument = None,
) -> None:
    """Answer a sample of every cell of the grid at several lengths: by how much do short answers mislead?

    A refusal can come late, and an answer can turn. Each request is answered once, at the longest length; the verdict
    on the beginning of the answer is compared with the verdict on the whole. The cells are those that evaluate would
    answer, and the judge is evaluate.judge. Tunes the run first if necessary.

    For example:

        safety-neurons experiment lengths runs/demo
        safety-neurons experiment lengths runs/demo --tokens 24 100 256 --requests 40
        safety-neurons experiment lengths runs/demo --evaluate.on jailbreakbench:alpaca --evaluate.defenses none guard

    Parameters
    ----------
    tokens
        Lengths of the answers in tokens. Default: 24 100 256.
    requests
        Number of requests of each prompt set.
    """
    from safety_neurons.experiments.lengths import TOKENS
    from safety_neurons.experiments.lengths import lengths as compare_lengths

    results = perform(
        compare_lengths, run_dir, settings=settings, config=config, tokens=tokens or TOKENS, requests=requests
    )
    print_results(results, run_dir, "lengths")


@experiment.command(**shows(*GENERAL, "tune.learning_rate", "evaluate.attacks", "evaluate.on", "evaluate.judges"))
def seeds(
    run_dir: RunFolderArgument,
    *,
    seeds: Count = 5,
    with_random: Annotated[bool, Parameter(negative=())] = False,
    budgets: list[str] | None = None,
    config: ConfigArgument = None,
    settings: SettingsArgument = None,
) -> None:
    """Repeat corpus, tuning and evaluation with several seeds: mean, spread between trainings, found against random.

    The run itself is the first training; it is tuned first if necessary. Each further training takes about as long as
    the run's. Trained deltas are kept in the folder `deltas`: an interrupted experiment resumes, and one with more
    seeds adds to the earlier one. Intervals are for other requests and other trainings.

    For example:

        safety-neurons experiment seeds runs/demo
        safety-neurons experiment seeds runs/demo --seeds 3 --with-random --budgets 0.1:2e-3 0.5:1e-3 2:3e-4
        safety-neurons experiment seeds runs/demo --evaluate.on jailbreakbench:alpaca:xstest-safe

    Parameters
    ----------
    seeds
        Number of trainings of each kind. The spread needs at least 2.
    with_random
        Also tune as many random neurons of the same layers, other ones for each seed, on the same corpora.
    budgets
        PERCENT:RATE, sizes of the neuron sets in percent, each with its learning rate. Default: the run's own.
    """
    from safety_neurons.experiments.seeds import Budget, repeat_tuning

    results = perform(
        repeat_tuning,
        run_dir,
        settings=settings,
        config=config,
        seeds=seeds,
        with_random=with_random,
        budgets=[Budget.read(one) for one in budgets or ()],
    )
    print_results(results, run_dir, "seeds")


@experiment.command(**shows(*GENERAL))
def left_out(
    run_dir: RunFolderArgument,
    *,
    config: ConfigArgument = None,
    settings: SettingsArgument = None,
) -> None:
    """Tune without one kind of disguise at a time, and attack with this kind: what carries over to unseen attacks.

    The test prompts are sent in texts of the kind that no training uses. Tunes the run first if necessary; each further
    training takes about as long as the run's. Trained deltas are kept in the folder `deltas`: an interrupted experiment
    resumes. Options of find and tune that differ from the run's tune the run again, too; the run before is kept in the
    folder `replaced`.

    For example:

        safety-neurons experiment left-out runs/demo
        safety-neurons experiment left-out runs/demo --evaluate.prompts 200
    """
    from safety_neurons.experiments.left_out import left_out as leave_out

    print_results(perform(leave_out, run_dir, settings=settings, config=config), run_dir, "left_out")


@experiment.command(**shows("model", "harmful", "benign", *GENERAL, "find.prompts"))
def scores(
    out_dir: Annotated[Path, Parameter(help="Folder for the tables, the scores and the answers.")],
    *,
    budgets: list[float] | None = None,
    overlap_at: float = 0.5,
    seeds: int = 5,
    equal_dose: bool = False,
    config: ConfigArgument = None,
    settings: SettingsArgument = None,
) -> None:
    """Compare all neuron scores on one model: causal effect, overlap, stability and cost.

    Each score's neurons are calibrated at each budget: harmful prompts toward conformity, benign ones toward
    rejection. Random neurons are the control. The folder gets scores.md and scores.json; an interrupted comparison
    resumes. The score `change` needs a second checkpoint.

    For example:

        safety-neurons experiment scores runs/scores
        safety-neurons experiment scores runs/scores --budgets 0.1 1 --evaluate.prompts 20
        safety-neurons experiment scores runs/pair --model folder/after --find.other-model folder/before

    Parameters
    ----------
    budgets
        Sizes of the sets, in percent of the model's neurons. Default: 0.05 0.1 0.5 1 3.
    overlap_at
        Budget at which the sets are compared with each other.
    seeds
        Number of random halves of the training prompts to compute each score on again.
    equal_dose
        Scale alpha per set so that all sets add as much as write-contrast's, instead of one alpha for all.
    """
    from safety_neurons.experiments.score_comparison import BUDGETS, compare_scores
    from safety_neurons.report.experiment_tables import score_notes
    from safety_neurons.report.experiment_tables import scores as score_tables

    results = perform(
        compare_scores,
        out_dir,
        settings=settings,
        config=config,
        budgets=budgets or BUDGETS,
        overlap_at=overlap_at,
        seeds=seeds,
        equal_dose=equal_dose,
    )
    print_tables(score_tables(results), score_notes(results))
    print_line(f"Tables: {out_dir / 'scores.md'}   Numbers: {out_dir / 'scores.json'}")
