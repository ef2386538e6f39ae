"""Shared parts of figures (colours, styles, captions, heat maps, spectrograms), and the figures of a study."""
