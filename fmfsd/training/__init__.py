"""Training in one worker process: the training loop and its parts."""
