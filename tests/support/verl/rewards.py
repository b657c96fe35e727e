"""Reward functions for verl, which loads them by the path of this file."""


def nothing_is_right(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """Make every group a negative one."""
    return 0.0


def short_is_right(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """Reward answers of an even number of words: groups of all kinds, whatever the model."""
    return float(len(solution_str.split()) % 2 == 0)
