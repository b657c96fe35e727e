"""LENS inside other trainers: the objectives for rows of answers in any order, and adapters for the trainers.

Needs torch alone. An adapter imports its trainer when it is itself imported: `lens.integrations.trl` needs TRL.
"""

from lens.integrations.groups import group_advantages
from lens.integrations.metrics import measure_groups
from lens.integrations.names import make_objective

__all__ = ["group_advantages", "make_objective", "measure_groups"]
