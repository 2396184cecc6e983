"""Which neurons differ between the two prompt sets by more than chance, over all neurons of a model at once."""

import numpy
import torch
from scipy.stats import false_discovery_control, ttest_ind_from_stats
from torch import Tensor

from safety_neurons.find.sums import ActivationStatistics

FALSE_DISCOVERY_RATE = 0.05


def significant(harmful: ActivationStatistics, benign: ActivationStatistics) -> list[Tensor]:
    """Masks of the neurons whose mean activations differ, bool [neurons] per site.

    Welch's t-test (1947) on the means, and Benjamini and Hochberg's control (1995) of the share of false discoveries
    over all neurons of the model. The test takes each counted token for an independent one: it is meant for one token
    a prompt. Neurons with fewer than two tokens on a side, or that never vary, are not significant.
    """
    sides = [
        (
            torch.cat(side.mean).double().numpy(),
            torch.cat(side.variance).double().numpy(),
            torch.cat(side.count).double().numpy(),
        )
        for side in (harmful, benign)
    ]
    (_, first, first_count), (_, second, second_count) = sides
    testable = (first_count > 1) & (second_count > 1) & (first + second > 0)
    values = numpy.ones(len(testable))
    moments = [
        (mean[testable], numpy.sqrt((variance * count)[testable] / (count[testable] - 1)), count[testable])
        for mean, variance, count in sides
    ]
    if testable.any():
        values[testable] = ttest_ind_from_stats(*moments[0], *moments[1], equal_var=False).pvalue
        values = false_discovery_control(values)
    found = torch.from_numpy(values <= FALSE_DISCOVERY_RATE)
    return list(found.split([len(site) for site in harmful.mean]))
