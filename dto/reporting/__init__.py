"""The report of a run: figures with intervals, costs, tables and pictures."""
