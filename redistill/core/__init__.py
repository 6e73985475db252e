"""The domain-blind core: nothing in this package imports text, vision, generation, embodied or speech."""
