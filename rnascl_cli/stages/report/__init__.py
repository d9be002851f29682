"""``report``: tables and figures from run directories."""
