"""Sound input and output: convert waveforms to codes and back, and read and write sound files."""
