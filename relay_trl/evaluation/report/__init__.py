"""The report on an evaluation: statistics, tables, plots, pages and the verdict."""
