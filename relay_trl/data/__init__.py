"""Training sets, benchmarks and the samples made for them."""
