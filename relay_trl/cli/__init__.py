"""The command line of recipes: options, help, launch checks, progress, and how a program ends."""
