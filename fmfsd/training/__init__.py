"""The training loop of one worker and its parts."""
