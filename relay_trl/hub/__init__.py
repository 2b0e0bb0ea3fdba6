"""Pushes to the Hugging Face Hub: cards of models and data sets, and the upload with its scan for secrets."""
