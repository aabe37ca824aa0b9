"""Live monitor of a run or a search. It reads only their files, so it works on any host that sees them. No torch."""
