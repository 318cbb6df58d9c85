"""The cpu backend measured beside what else one would run the model with."""
