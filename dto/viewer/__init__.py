"""Looking at trajectories: `dto view`, and `dto.show` in notebooks and terminals.

`data` joins a run's tables into views, `render` and `answers` make of each a tree of elements
(`nodes`), and the same tree becomes HTML in a notebook, text in a terminal and, by the script in
`assets`, the page that `page` writes.
"""
