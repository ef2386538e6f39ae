"""The recipe that makes the bundled models: codec, text encoder and decoder, trained from nothing."""
