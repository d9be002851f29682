"""Tables of the report and of studies."""
