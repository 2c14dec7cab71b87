"""The stages, one module each, in the order of 2505.21765 section 3.

sample → segment → estimate → optimize → prune → pair → train → evaluate → report

Those of 2508.17803 section 3 stand beside them: sample, batch → chain → label → train.
"""
