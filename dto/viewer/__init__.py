"""Viewer of trajectories: `dto view`, and `dto.show` in notebooks and terminals.

`data` joins the tables of a run into views; `prompt` adds the requests. `render` and `answers` turn
a view into a tree of elements (`tree`, with parts of `nodes`), in which `markup` makes formulas and
Markdown of texts. The tree becomes HTML in a notebook, text in a terminal, and JSON in the page
that `page` writes, the scripts in `assets` display and `serve` serves.
"""
