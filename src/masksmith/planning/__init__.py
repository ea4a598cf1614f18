"""Planning: what this machine can do in the time it is given. Only ``measure`` needs torch."""
