"""What the history says: anomalies, trends, forecasts, and what to be told of."""
