"""The tables of the search for the smallest intervention: what was chosen, its tests, and the trials."""

from statistics import fmean

from safety_neurons.core.tables import Table, numbers, row, words
from safety_neurons.report import text
from safety_neurons.report.experiment_results import Search, SearchDirection, TestedIntervention
from safety_neurons.report.experiment_tables import MOST_TRIALS
from safety_neurons.report.run_tables import MOST_ROWS

MOST_DIRECTIONS = 6
_MOST_TESTS = 12
# Of all prompts after the intervention, whatever their answers were before: answered toward conformity, else refused.
_REACHED = "answered or refused"


def chosen_interventions(found: Search) -> Table:
    """The smallest intervention in each direction, on validation prompts."""
    rows = [
        [
            one.toward,
            text.count(one.chosen.neurons),
            text.share(one.chosen.share_of_neurons),
            text.share(one.chosen.share_of_parameters),
            f"{one.chosen.alpha:.2f}",
            one.chosen.prompt_positions,
            one.chosen.generated_tokens,
            text.percent(one.chosen.moved),
            text.percent(one.chosen.broken),
        ]
        for one in found.directions[:MOST_DIRECTIONS]
    ]
    sizes = numbers("neurons", "of neurons", "of weights", "alpha", "positions", "generated", _REACHED, "broken")
    return Table.of("The smallest intervention, on validation prompts", (*words("toward"), *sizes), rows)


def intervention_tests(one: SearchDirection) -> list[Table]:
    """The chosen intervention and random neurons on test prompts, one table a test."""
    tables = []
    for test in one.tests[:_MOST_TESTS]:
        rows = []
        for tested in test.rows[:MOST_ROWS]:
            base = tested.subject == "base"
            used = one.chosen.alpha if tested.alpha is None else tested.alpha
            rows.append(
                [
                    tested.subject,
                    text.NONE if base else f"{used:.2f}",
                    text.rate(tested.moving.answered if one.verb == "answered" else tested.moving.refused),
                    text.percent(tested.moving.broken.value),
                    text.NONE if base else text.rate(tested.moved),
                    text.nats(tested.staying.kl_divergence.value if tested.staying else None),
                    _ordinary_kl(one, tested),
                    text.p_value(tested.p_value),
                    text.count(tested.moving.n),
                ]
            )
        kl = f"KL on {test.staying}"
        columns = (*words("neurons"), *numbers("alpha", one.verb, "broken", "moved", kl, "ordinary KL", "p", "n"))
        tables.append(Table.of(f"Toward {one.toward}, {test.on}: {test.moving} prompts", columns, rows))
    return tables


def _ordinary_kl(one: SearchDirection, tested: TestedIntervention) -> str:
    """The KL on benign validation prompts, of those that are compared at it."""
    if tested.subject == "found":
        return text.nats(one.kl_divergence)
    return text.nats(tested.kl_divergence) + ("" if tested.kl_reached else " (not reached)")


def intervention_means(found: Search) -> Table:
    """Both directions together, for each test and each kind of neurons; several random sets count as their mean."""
    shown = found.directions[:MOST_DIRECTIONS]
    effects: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for one in shown:
        for test in one.tests[:_MOST_TESTS]:
            for tested in test.rows[:MOST_ROWS]:
                effect, moved = _effect_of(one, tested), tested.moved.value
                if effect is not None and moved is not None:
                    by_direction = effects.setdefault((test.on, tested.subject), {})
                    by_direction.setdefault(one.toward, []).append((effect, moved))
    rows = []
    for (on, subject), by_direction in effects.items():
        if len(by_direction) == len(shown):
            means = [[fmean(values) for values in zip(*sets, strict=True)] for sets in by_direction.values()]
            rows.append([on, subject, *(text.percent(fmean(values)) for values in zip(*means, strict=True))])
    columns = (*words("test", "neurons"), *numbers(_REACHED, "moved"))
    return Table.of("Mean of both directions", columns, rows, "A broken answer counts as neither.")


def _effect_of(one: SearchDirection, tested: TestedIntervention) -> float | None:
    return (tested.moving.answered if one.verb == "answered" else tested.moving.refused).value


def intervention_trials(one: SearchDirection) -> Table:
    """All trials of a direction."""
    rows = [
        row(
            [
                text.count(trial.neurons),
                text.share(trial.percent / 100),
                f"{trial.alpha:.2f}",
                trial.prompt_positions,
                trial.generated_tokens,
                text.percent(trial.moved),
                text.percent(trial.broken),
                text.nats(trial.side_kl_divergence),
            ],
            "chosen" if trial == one.chosen else "",
        )
        for trial in one.trials[:MOST_TRIALS]
    ]
    columns = numbers(
        "neurons", "of neurons", "alpha", "positions", "generated", one.verb, "broken", "KL on the others"
    )
    return Table.of(f"Trials toward {one.toward}", columns, rows)


def search_notes(found: Search) -> list[str]:
    """What a reader of the search must know."""
    limits = found.limits
    kl = f" and a KL of at most {limits.kl_divergence} on the other prompts" if limits.kl_divergence is not None else ""
    notes = [
        f"Neurons by {found.score}. Wanted: {text.percent(limits.target)} of the prompts answered (toward "
        "conformity) or refused (toward rejection), with at most "
        f"{text.percent(limits.broken)} broken answers{kl}. Random neurons are as many, of the same layers; at equal "
        "dose their alpha is raised until they are moved as far, at equal KL until they move the model as far on the "
        "benign validation prompts (ordinary KL, in nats per token). Moved: prompts whose answer became this only with "
        "the intervention. p: McNemar's exact test of the found neurons against these random ones, adjusted for the "
        "number of tests in its table (Holm)."
    ]
    for one in found.directions[:MOST_DIRECTIONS]:
        if not one.chosen.keeps(limits):
            notes.append(f"Toward {one.toward}: no trial kept to the limits, and this one is nearest to them.")
        elif one.chosen.moved < limits.target:
            notes.append(f"Toward {one.toward}: that is short of the {text.percent(limits.target)} that were wanted.")
    return notes
