"""What answers add up to and how it is shown: statistics, tables, plots, pages and the verdict."""
