"""The opened model, with its configuration, family, sites, text, time axis, files and weights."""
