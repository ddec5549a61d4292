"""Formats an edit can be exported to, one file each; see `efface.export`."""
