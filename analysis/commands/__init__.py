"""The commands of `audiolens`, with one module per command. `analysis.cli` registers all commands."""
