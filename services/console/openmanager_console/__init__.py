"""The HTTP port: the web console, OTLP/HTTP, and a page of measures for Prometheus; a client of the gateway."""
