"""Pre-pre-training of language models on neural cellular automata, at Megatron scale."""

__version__ = "0.1.0"
