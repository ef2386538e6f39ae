"""Check, when a model is opened, that its sites, steps and projections are what the lens takes them for."""
