"""The DeBERTa model, its configuration, checkpoint and tokenizer."""
