"""Decides whether answers are right: the graders, their rules, and the processes that run math-verify."""
