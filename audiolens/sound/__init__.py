"""Sound input and output: waveforms to codes and back, and sound files, which are refused if incomplete."""
