"""Two ways of running the model, compared layer by layer."""
