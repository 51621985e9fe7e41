"""The REST API and the web page over what alerting stored."""
