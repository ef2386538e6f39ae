"""Distribute the batches of a run over processes of this machine, or over the machines of a Ray cluster.

A batch depends only on its plan, so a run gives the same bytes wherever and in whichever order its batches are
generated. The process that was started by the user is the only one that writes results.
"""

from analysis.distributed.settings import Ray as Ray

__all__ = ["Ray"]
