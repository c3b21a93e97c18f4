"""What a dataset looks like: figures of quality, pictures of frames, sequences as text."""
