"""Check, when a model is opened, that its sites, steps and projections match what the lens assumes."""
