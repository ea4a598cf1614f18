"""Reading: which layout is this, decode everything once, and say what is wrong with it."""
