"""What a run amounts to: figures with intervals, what they cost, a table and a picture."""
