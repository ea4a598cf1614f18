"""From probabilities to masks: rules, their search, and the proof that a rule helps."""
