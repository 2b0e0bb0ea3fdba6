"""What a run or a service will need, worked out from configs before any weights are loaded."""
