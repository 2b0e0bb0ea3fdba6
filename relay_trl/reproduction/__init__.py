"""The stages of a pair as commands, plans with seeds, and tables over seeds."""
