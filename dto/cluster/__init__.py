"""Process the groups of a run's stages on Ray actors, each with an engine of its own.

`places` says where actors run and what each needs, `worker` is the actor, and `fleet` is the part
of the driver, the process of `dto run`.
"""

from dto.cluster.fleet import Fleet as Fleet
from dto.cluster.places import Ray as Ray
