"""What figures share: colours and styles, captions and heat maps, spectrograms; and the figures of a study."""
