"""The self-check when a model is opened: sites, steps and projections are what the lens says they are."""
