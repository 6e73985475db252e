"""The vision domain: a step is one prediction, a row one image."""
