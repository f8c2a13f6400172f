"""Engines: where work is done, on one machine or a cluster, with the same results.

afmi.evaluate(model, "photographs/", "results", engine=afmi.engines.Local(workers=4))
afmi.evaluate(model, "photographs/", "results", engine=afmi.engines.Ray(workers=8, gpus=1))
"""

from afmi.engines.base import Engine
from afmi.engines.choosing import EngineLike, as_engine
from afmi.engines.local import Local
from afmi.engines.ray import Ray
from afmi.engines.workers import WorkerWarning

__all__ = ["Engine", "EngineLike", "Local", "Ray", "WorkerWarning", "as_engine"]
