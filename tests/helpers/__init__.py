"""What several test modules share: scripted pairs, small trainers and tokenizers, servers in a thread, made-up runs."""
