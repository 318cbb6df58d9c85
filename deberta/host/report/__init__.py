"""What is measured, claimed and verified."""
