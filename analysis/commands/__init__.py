"""The commands of `audiolens`, a module each; `analysis.cli` gathers them."""
