"""The opened model: its configuration, family, sites, text, time axis, files and weights."""
