"""CITER, the token-level router that the paper compares with: router, labels, decoding."""
