"""The comparison of DTO with published methods: the same samples, budget and grid for all.

`compare` reads their recipes and works through all of them at the same budget, `tune` takes one
through its grid on dev, `report` sums up. What they train on is chosen in `dto.baselines`; their
losses stand beside DTO's in `dto.training`.
"""
