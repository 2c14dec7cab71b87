"""The embedded model, from nothing: examples of thinking, and its training (`make nano`)."""
