"""Reports for a browser: one HTML file each, which works offline, on a phone and in the dark (extra `report`)."""
