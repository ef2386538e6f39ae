"""Run a model under nnsight: batching, the step clock, edits and recordings, generation, and the self-check."""
