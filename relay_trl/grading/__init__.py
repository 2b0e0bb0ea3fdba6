"""Is an answer right: the grader, its rules for forms and words, and the processes that math-verify runs in."""
