"""Results of a sweep: best config, summary, significance, parameter importance, tap effects."""
