"""Numbers, tables and figures from arrays: what runs are compared by. Knows neither torch nor the disk."""
