"""Building blocks of a report: escaped markup, tables, small PNG images."""
