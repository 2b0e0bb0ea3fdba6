"""`relay-trl watch`: the rollouts and curves of a training, live in a browser or as one file."""
