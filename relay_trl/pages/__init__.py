"""What all HTML pages share: colours, the script that shows a rollout, and how a page is assembled."""
