"""What DTO is compared with, and the comparison.

`solutions` and `data` are what the published baselines train on, `methods` reads their recipes,
`tune` takes one method through its grid on dev, `compare` all of them at the same budget, `report`
sums up. Their losses stand beside DTO's in `dto/training`.
"""
