"""Thinking patterns in text: where one ends and the next begins (2505.21765, section 3).

`lexicon` holds the cues, `component` finds them at the starts of sentences (spaCy), `patterns`
decides where patterns open: by a linear `model` of sentences and their `features` in text in Latin
letters, by rules elsewhere. `worker` does all of it for a text; `dto.segmenter` does so in other
processes. Importing this package loads neither spaCy nor torch.
"""
