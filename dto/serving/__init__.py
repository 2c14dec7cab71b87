"""Early exit for whoever asks: one question, answered as it is thought.

records (what a caller sees) → live (one response under way) → model (an open model, the functions)
→ app (HTTP) → wire (OpenAI's format)
"""
