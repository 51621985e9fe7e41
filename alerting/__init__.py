"""Records in; stored rows, alerts and actions out."""
