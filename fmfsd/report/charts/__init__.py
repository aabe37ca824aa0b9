"""Charts of a report: Vega-Lite specifications and their rendering as SVG."""
