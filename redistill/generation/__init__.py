"""The generation domain: a step is one noised sample or one denoising step, a row one image."""
