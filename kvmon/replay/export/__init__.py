"""A capture for other tools: Parquet for questions over many of them, a trace for a timeline in the browser."""
