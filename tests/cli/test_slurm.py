"""What a sweep asks of SLURM's nodes; tests/slurm has a real cluster."""

from __future__ import annotations

import pytest

from lens.cli.slurm import Node, fit_to_nodes, nodes_of
from lens.errors import ConfigError

CPU, GPU = Node("cpu", True, 16, 0), Node("gpu", False, 64, 8)
OPTIONS = {"partition": "gpu", "nodes": 1, "tasks_per_node": 1, "gpus_per_node": None, "cpus_per_task": None}


@pytest.mark.parametrize(
    ("nodes", "options", "gpus", "cpus"),
    [
        ([CPU], {"partition": None}, None, 8),
        ([CPU], {"tasks_per_node": 4}, None, 4),
        ([CPU], {"tasks_per_node": 2, "cpus_per_task": 1}, None, 1),
        ([GPU], {}, 1, 8),
        ([GPU], {"tasks_per_node": 8}, 8, 8),
        ([GPU], {"tasks_per_node": 2, "gpus_per_node": 4}, 4, 8),
        ([GPU], {"gpus_per_node": 0}, None, 8),
        ([GPU], {"gres": "gpu:h200:2"}, None, 8),
        ([GPU], {"cpus_per_gpu": 4}, 1, None),
        ([CPU, GPU, GPU], {"nodes": 2, "partition": "cpu,gpu"}, 1, 8),
    ],
)
def test_gpus_and_cores_are_those_of_the_nodes_where_nobody_says(nodes, options, gpus, cpus):
    fitted = fit_to_nodes({**OPTIONS, **options}, nodes)
    assert (fitted["gpus_per_node"], fitted["cpus_per_task"]) == (gpus, cpus)


@pytest.mark.parametrize(
    ("nodes", "options", "message"),
    [
        (
            [CPU],
            {"gpus_per_node": 1, "partition": None},
            "gpus_per_node=1: must be at most 0, the GPUs of a node of",
        ),
        ([GPU], {"tasks_per_node": 9}, "tasks_per_node=9: must be at most 8, the GPUs of a node of partition gpu"),
        ([CPU], {"tasks_per_node": 17}, "tasks_per_node=17: times cpus_per_task=1 must be at most 16, the cores of a"),
        ([CPU], {"cpus_per_task": 17}, "tasks_per_node=1: times cpus_per_task=17 must be at most 16, the cores of a"),
        (
            [CPU, GPU],
            {"nodes": 2},
            "nodes=2: must be at most 1, the nodes of partition gpu with as many cores and GPUs",
        ),
    ],
)
def test_more_than_the_nodes_have_is_refused(nodes, options, message):
    with pytest.raises(ConfigError) as refused:
        fit_to_nodes({**OPTIONS, **options}, nodes)
    assert str(refused.value).startswith(f"hydra.launcher.{message}")


def test_a_partition_is_the_default_one_or_those_that_are_named():
    assert nodes_of(None, [CPU, GPU]) == [CPU]
    assert nodes_of("gpu,cpu", [CPU, GPU]) == [CPU, GPU]
    with pytest.raises(ConfigError, match=r"^hydra\.launcher\.partition='gpus,cpu': must be one of cpu, gpu$"):
        nodes_of("gpus,cpu", [CPU, GPU])
