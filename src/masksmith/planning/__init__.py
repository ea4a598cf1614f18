"""Planning: what this machine can do in the time it is given. ``measure`` needs torch; import it by name."""
