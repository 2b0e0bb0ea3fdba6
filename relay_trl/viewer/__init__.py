"""`relay-trl watch`: the rollouts and curves of a training in a browser, while it runs, or as one file to keep."""
