"""Viewer of trajectories: `dto view`, and `dto.show` in notebooks and terminals.

`data` joins the tables of a run into views. `render` and `answers` turn a view into a tree of
elements (`nodes`). The tree becomes HTML in a notebook, text in a terminal, and JSON in the page
that `page` writes and the scripts in `assets` display.
"""
