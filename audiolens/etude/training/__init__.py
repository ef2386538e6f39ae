"""The training recipe of the bundled model: codec, text encoder and decoder, all trained from scratch."""
