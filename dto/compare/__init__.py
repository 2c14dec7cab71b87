"""The comparison of DTO with published methods: the same samples, budget and grid for all.

`methods` reads their recipes, `tune` takes one method through its grid on dev, `compare` all of
them at the same budget, `report` sums up. What they train on is chosen in `dto.baselines`;
their losses stand beside DTO's in `dto.training`.
"""
