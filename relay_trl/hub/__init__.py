"""What goes to the Hugging Face Hub: cards of models and data, and the upload with its scan for secrets."""
