"""What runs and sweeps came to, as figures, tables and one self-contained HTML page. No torch."""
