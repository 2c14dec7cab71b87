"""Who judges thinking patterns: one module each, with a `judge` of one signature.

    async def judge(problem, trajectory, segments, ctx) -> list[Verdict]

`segments` are those that an optimized trajectory keeps, the exit last. A judge gives a verdict with
a score for each that it looked at, and prunes nothing: `redundant`, `meaningless` and `harmful`
propose a removal, the higher the score the sooner. What it could not judge is `unjudged`, with the
reason, and stays. `dto.stages.prune` verifies the proposals and undoes what fails.
"""
