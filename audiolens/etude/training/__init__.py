"""The training recipe of the bundled model, whose codec, text encoder and decoder are all trained from scratch."""
