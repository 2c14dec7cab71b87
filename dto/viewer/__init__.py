"""Looking at trajectories: `dto view`, `dto.show`, and how records show in notebooks and terminals.

`data` joins a run's tables, `render` makes of each row a tree of elements (`nodes`), and the same
tree becomes HTML in a notebook and, by the script in `assets`, the page that `page` writes.
"""
