"""Comparison of DTO with published methods: the same samples, token budget and grid for all.

`compare` reads the recipes of the methods and runs them, `tune` tunes one method on dev, `report`
summarizes. `dto.baselines` chooses the training data of the methods; their losses are in
`dto.training`.
"""
