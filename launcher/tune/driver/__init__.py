"""The process that runs Ray Tune: tuner, searcher, scheduler, trial actors, and the runs of the winners."""
