"""Sound in and out: waveforms to codes and back, and sound files read whole or refused."""
