"""Reports of runs and searches: one self-contained HTML page of charts and tables. No torch."""
