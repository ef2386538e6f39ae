"""The commands of `audiolens`, one module each; `analysis.cli` registers them."""
