"""Decoders: from the bytes of a file to an array."""
