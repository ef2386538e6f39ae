"""One run of a model under nnsight: its plan, clock and batches, what is edited and recorded, and how it is checked."""
