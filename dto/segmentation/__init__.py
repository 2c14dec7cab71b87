"""Thinking patterns in text: where one ends and the next begins (2505.21765, section 3).

`component` finds cues (`dto.languages`) at the starts of sentences with spaCy. `patterns` decides
where patterns open: a linear model of sentences and their `features` in text in Latin letters,
rules elsewhere. `worker` segments whole texts, in other processes too. Importing this package loads
neither spaCy nor torch.
"""

OPENING = "opening"  # kind of the first segment, which no cue opens
LOOP = "loop"  # kind of a segment that repeats the text before it
