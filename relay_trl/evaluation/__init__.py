"""Who answers how well at what cost: methods, runner, statistics and report."""
