"""The stages of 2505.21765 section 3, one module each, and `evaluate`.

sample → segment → estimate → optimize → prune → pair, then `dto.training.train`, then evaluate

Those of 2508.17803 section 3 are in `dto.drqa`: batch → chain → label.
"""
