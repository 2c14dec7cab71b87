"""What a run will take, from a pilot of a few problems: `dto run RECIPE --pilot 20`.

Tokens and FLOPs of a stage are the mean over the pilot's problems times the number there will be.
Their 95 % intervals come from a bootstrap that draws problems, the same draws for all stages,
widened for few problems (Student's t) and because the run's own problems are a draw too: by
sqrt(1 + n / N). Where a few problems take most of the tokens they promise too much: in simulations
with 20 problems they hold in 94, 92 and 88 % of the cases for lognormal tokens of spread 0.3, 0.6
and 1, and what they miss is mostly a run that takes more.

FLOPs take the share of prefixes that the pilot read from the prefix cache. With more rows at once
it holds fewer of them: the high end has each computed again for every call.

What training shortens is known only once it is done: the pilot trains on a handful of pairs. What a
trained model generates (its dev evaluations, its arms of the evaluation) may be anything between
what the responses have that it is trained on and what the base model's have: both ends are in the
interval. Training is forecast to its end; one that collapses stops earlier.

Seconds are fixed ones (an engine that starts, tables that are written), which stay as they are, and
busy ones, which grow with the tokens. A pilot is too small to fill an engine's batch, so busy
seconds grow by less: if it had k requests under way at a time in the mean, and the run will have K,
throughput grows by a factor between 1 (the device was full already) and K / k (a step takes as long
with K as with k). Both ends are in the interval; the figure takes the square root between them. The
batches of training are as full in the pilot, it grows with its tokens. Stages without an engine
grow with the problems, their interval is a factor of 2 either way. Seconds are of this machine,
under the load that it had: no interval knows what else will run beside.
"""

from dto.forecast.pilot import Forecast, forecast, pilot_recipe, run_pilot

__all__ = ["Forecast", "forecast", "pilot_recipe", "run_pilot"]
