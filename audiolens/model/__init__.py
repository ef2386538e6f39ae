"""What is opened: a model's configuration, family, sites, text, time axis, files and weights."""
