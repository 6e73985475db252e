"""The embodied domain: a step is an action in a simulator, a row one transition."""
