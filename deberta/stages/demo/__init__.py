"""The demo's data, tokenizer and model."""
